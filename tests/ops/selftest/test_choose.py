"""Kernels that fail on a machine, one fault each: the program goes on and says so once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Checkpoints

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest import verdicts as store
from dsv4_mlx.ops.selftest.choose import choose
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal, Verdict
from dsv4_mlx.ops.table import REFERENCE

TESTS = Path(__file__).parents[2]
KERNELS = ("hc_post", "latents")
LIMITS = CheckLimits(seconds=6.0, times=3.0, slack=0.2)
FAULTS = {
    "broken": ("fails", "Unable to build metal library"),
    "wrong": ("differs", "values differ"),
    "crashing": ("crashes", "signal 11"),
    "hanging": ("hangs", "6 s"),
    "slow": ("slow", "the reference"),
}


def scripted(name: str) -> Metal:
    return Metal(f"ops.selftest.scripted:{name}", "no macOS", "no chip", "no version")


def test_reference_checks_nothing(tmp_path: Path) -> None:
    choice = choose("reference", tmp_path / "kernels.json", metal=scripted("hanging"))
    assert choice.ops is REFERENCE
    assert choice.message is None
    assert not (tmp_path / "kernels.json").exists()


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_without_metal_the_references_run(tmp_path: Path) -> None:
    assert choose("auto", tmp_path / "kernels.json").ops is REFERENCE


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_kernel_is_replaced(fault: str, tmp_path: Path, checkpoints: Checkpoints) -> None:
    """The verdict says what happened, its neighbour still runs, the model gives the reference's logits."""
    outcome, detail = FAULTS[fault]
    choice = choose("auto", tmp_path / "kernels.json", metal=scripted(fault), kernels=KERNELS, limits=LIMITS)
    bad, *good = choice.verdicts
    assert (bad.kernel, bad.outcome) == ("hc_post", outcome)
    assert detail in bad.detail
    assert [v.outcome for v in good] == ["works"] * len(good)
    assert all(v.bytes for v in good)
    assert choice.message is not None
    assert "hc_post" in choice.message
    assert "\n" not in choice.message
    assert choice.ops.hc_post is REFERENCE.hc_post
    assert all(getattr(choice.ops, v.kernel) is not getattr(REFERENCE, v.kernel) for v in good)
    tokens = list(range(5, 17))
    folder = checkpoints.converted("small")
    rows = [
        Engine.open(folder, EngineOptions(context=256, numerics="exact", ops=ops)).session(256)
        for ops in (choice.ops, REFERENCE)
    ]
    ours, theirs = (np.asarray(session.sync(tokens)) for session in rows)
    assert np.abs(ours - theirs).max() < 1e-3 * theirs.std()
    assert ours.argmax() == theirs.argmax()


def test_a_verdict_is_kept_for_this_machine_only(tmp_path: Path) -> None:
    file, sound = tmp_path / "kernels.json", scripted("sound")
    first = choose("auto", file, metal=sound, kernels=KERNELS, limits=LIMITS)
    assert first.message is None
    assert [v.outcome for v in first.verdicts] == ["works"] * len(KERNELS)
    # Found again without a process: a launcher that can't be imported would fail.
    stored = store.known(file, sound.key())
    assert stored == {v.kernel: v for v in first.verdicts}
    for change in ({"mlx": "other"}, {"chip": "other"}, {"system": "other"}):
        assert store.known(file, replace(sound, **change).key()) == {}


def test_a_child_that_can_not_begin_says_so_and_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    metal = scripted("nothing_of_that_name")
    found = choose_quietly(file, metal)
    assert [v.outcome for v in found] == ["not checked"] * len(KERNELS)
    assert "nothing_of_that_name" in found[0].detail
    assert store.known(file, metal.key()) == {}


def choose_quietly(file: Path, metal: Metal) -> list[Verdict]:
    from dsv4_mlx.ops.selftest.choose import judged

    return judged(file, metal, KERNELS, LIMITS)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"format": 1, "kernels": 3}', '{"format": 9, "kernels": {}}']
)
def test_a_damaged_file_is_no_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text)
    assert store.known(file, "key") == {}
    store.remember(file, "key", [Verdict("a", "works")])
    assert store.known(file, "key") == {"a": Verdict("a", "works")}
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.json"]


@pytest.mark.parametrize(
    "record",
    [{"key": "key"}, {"key": "key", "verdict": {"kernel": "b", "outcome": "works"}},
     {"key": "key", "verdict": {"kernel": "a", "outcome": "fine"}}, {"key": "key", "verdict": {"x": 1}}, 7],
)  # fmt: skip
def test_a_damaged_record_is_no_record(record: object, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(json.dumps({"format": 1, "kernels": {"a": record}}))
    assert store.known(file, "key") == {}


def test_a_file_that_can_not_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store.remember(tmp_path / "file" / "kernels.json", "key", [Verdict("a", "works")])


def test_the_key_follows_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    from dsv4_mlx.ops.selftest import verdicts as verdict

    before = scripted("sound").key()
    monkeypatch.setattr(verdict, "_sources", lambda: "changed")
    assert scripted("sound").key() != before


def test_a_child_ends_with_its_parent() -> None:
    """A program that is killed leaves no process behind that waits for a GPU."""
    code = (
        "import sys\nfrom dsv4_mlx.ops.selftest import supervisor as parent\n"
        "from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal\n"
        "import subprocess as s, os, threading, time\nreal = s.Popen\n"
        "def popen(*a, **k):\n    p = real(*a, **k); print(p.pid, flush=True); return p\n"
        "s.Popen = popen\n"
        "loads = parent.json.loads\n"
        "def heard(line):\n    print(line.decode(), flush=True); return loads(line)\n"
        "parent.json.loads = heard\n"
        "parent.check(Metal('ops.selftest.scripted:hanging', '', '', ''), ['hc_post'], CheckLimits(60.0))\n"
    )
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    child = int(program.stdout.readline())
    assert "begins" in program.stdout.readline()  # from here on it hangs
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 20
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    """Neither gone nor waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_every_kernel_has_a_reference_of_its_name() -> None:
    assert all(callable(getattr(REFERENCE, op.name)) for op in ALL)
