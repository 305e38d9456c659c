"""Kernels that fail on a machine, one fault each: the program goes on and says so once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Checkpoints
from ops.selftest.scripted import SMALL, sound

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.info import kernel_facts
from dsv4_mlx.errors import InputError
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.selftest import judge
from dsv4_mlx.ops.selftest import supervisor as parent
from dsv4_mlx.ops.selftest import verdicts as store
from dsv4_mlx.ops.selftest.choose import choose
from dsv4_mlx.ops.selftest.model_shape import ModelShape
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal, Outcome, Verdict
from dsv4_mlx.ops.table import REFERENCE

TESTS = Path(__file__).parents[2]
KERNELS = ("hc_post", "latents")
LIMITS = CheckLimits(seconds=6.0, times=3.0, slack=0.01)
FAULTS = {
    "broken": ("fails", "Unable to build metal library"),
    "wrong": ("differs", "values differ"),
    "crashing": ("crashes", "signal 11"),
    "hanging": ("hangs", "6 s"),
    "slow": ("slow", "the reference"),
}


def scripted(name: str) -> Metal:
    return Metal(f"ops.selftest.scripted:{name}", "no macOS", "no chip", "no version", shape=SMALL)


def test_reference_checks_nothing(tmp_path: Path) -> None:
    choice = choose("reference", tmp_path / "kernels.json", metal=scripted("hanging"))
    assert choice.ops is REFERENCE
    assert choice.message is None
    assert not (tmp_path / "kernels.json").exists()


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_without_metal_the_references_run(tmp_path: Path) -> None:
    assert choose("auto", tmp_path / "kernels.json").ops is REFERENCE


def test_what_is_tried_is_what_the_model_runs(
    tmp_path: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own sizes and formats; nothing is asked of it where no kernel is tried."""
    tried: list[ModelShape] = []

    def check(metal: Metal, *given: object, **more: object) -> list[Verdict]:
        tried.append(metal.shape)
        return []

    def asked() -> Any:
        pytest.fail("the model was asked")

    monkeypatch.setattr(parent, "check", check)
    folder = checkpoints.converted("small")
    config = kernel_facts(folder)[0]
    with pytest.raises(KeyError):  # this check finds nothing
        choose(
            "auto", tmp_path / "kernels.json", model=partial(kernel_facts, folder), metal=scripted("sound")
        )
    (shape,) = tried
    assert (shape.hidden, shape.experts, shape.chosen) == (
        config.hidden_size, config.experts, config.experts_per_token
    )  # fmt: skip
    assert (shape.linear, shape.expert) == ("mxfp8", "mxfp4")
    assert choose("reference", model=asked, metal=scripted("sound")).ops is REFERENCE


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
    others: list[dict[str, Any]] = [
        {"mlx": "other"}, {"chip": "other"}, {"system": "other"}, {"cores": 7}, {"shape": ModelShape()},
    ]  # fmt: skip
    for change in others:
        assert store.known(file, replace(sound, **change).key()) == {}


def test_what_failed_once_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, in a process of its own."""
    monkeypatch.setenv("SCRIPTED_FOLDER", str(tmp_path))
    choice = choose(
        "auto", tmp_path / "kernels.json", metal=scripted("crashing_once"), kernels=KERNELS, limits=LIMITS
    )
    assert (tmp_path / "crashed").exists()
    assert [v.outcome for v in choice.verdicts] == ["works"] * len(KERNELS)
    assert choice.message is None


def test_what_may_pass_is_tried_again_a_day_later(tmp_path: Path) -> None:
    file, verdicts = (
        tmp_path / "kernels.json",
        [Verdict(f"k {outcome}", outcome) for outcome in get_args(Outcome)],
    )
    store.remember(file, "key", verdicts, now=1e9)
    held = {v.outcome for v in store.known(file, "key", now=1e9 + 3600).values()}
    later = {v.outcome for v in store.known(file, "key", now=1e9 + 86_400).values()}
    assert held == {*get_args(Outcome)} - {"not checked"}
    assert later == {"works", "differs"}
    assert {v.outcome for v in store.known(file, "key", now=0.0).values()} == later  # a clock set back


def test_verdicts_of_several_models_are_kept(tmp_path: Path) -> None:
    """Of the last eight."""
    file = tmp_path / "kernels.json"
    for i in range(9):
        store.remember(file, f"key {i}", [Verdict("a", "works")])
    assert [len(store.known(file, f"key {i}")) for i in range(9)] == [0] + [1] * 8


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


DAMAGED = {
    "empty": "", "no object": "[]", "cut": "{", "no format": '{"checks": {}}',
    "no checks": '{"format": 2, "checks": 3}', "no check": '{"format": 2, "checks": {"key": 3}}',
}  # fmt: skip
RECORDS: dict[str, object] = {
    "no record": 7, "no verdict": {"at": 1.0}, "no time": {"verdict": {"kernel": "a", "outcome": "works"}},
    "another's": {"at": 1.0, "verdict": {"kernel": "b", "outcome": "works"}},
    "unknown": {"at": 1.0, "verdict": {"kernel": "a", "outcome": "fine"}},
    "other fields": {"at": 1.0, "verdict": {"x": 1}},
    "no number": {"at": "soon", "verdict": {"kernel": "a", "outcome": "works"}},
}  # fmt: skip


@pytest.mark.parametrize("what", [*DAMAGED, *RECORDS])
def test_a_damaged_file_is_an_error_that_names_it(what: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    text = DAMAGED.get(what) if what in DAMAGED else None
    if text is None:
        text = json.dumps({"format": 2, "checks": {scripted("sound").key(): {"a": RECORDS[what]}}})
    file.write_text(text)
    with pytest.raises(InputError, match="verdicts is damaged") as caught:
        choose("auto", file, metal=scripted("sound"), kernels=["a"])
    assert str(file) in str(caught.value) and "delete it" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ['{"format": 1, "kernels": {}}', '{"format": 9}'])
def test_another_versions_file_is_no_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "kernels.json"
    file.write_text(text)
    assert store.known(file, "key") == {}
    store.remember(file, "key", [Verdict("a", "works")])
    assert store.known(file, "key") == {"a": Verdict("a", "works")}
    assert [p.name for p in tmp_path.iterdir()] == ["kernels.json"]


def test_a_file_that_can_not_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store.remember(tmp_path / "file" / "kernels.json", "key", [Verdict("a", "works")])


@pytest.mark.parametrize("what", ["_sources", "__version__"])
def test_the_key_follows_the_program(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scripted("sound").key()
    monkeypatch.setattr(store, what, "changed" if what == "__version__" else lambda: "changed")
    assert scripted("sound").key() != before


@pytest.mark.parametrize("name", ["MLX_ENABLE_TF32", "MLX_MAX_OPS_PER_BUFFER"])
def test_the_key_follows_mlx_switches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for setting in ("1", "2"):
        monkeypatch.setenv(name, setting)
        keys.add(scripted("sound").key())
    assert len(keys) == 2


def test_the_key_covers_references_check_and_kernels() -> None:
    root = Path(store.__file__).parents[2]
    named = {name for name, _ in store._texts(root / "ops", (".py",))}
    assert {"reference/attend.py", "kernels/attend.py", "selftest/judge.py", "table.py"} <= named
    assert "attend.metal" in {name for name, _ in store._texts(root / "metal", (".metal",))}


@pytest.mark.parametrize(("kernel", "outcome"), [(3e-3, "slow"), (1.4e-3, "works"), (1.6e-3, "slow")])
def test_a_kernel_is_held_against_its_reference(
    kernel: float, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In milliseconds where its reference takes one: three times as slow is too slow."""
    monkeypatch.setattr(judge, "_medians", lambda ours, theirs: (kernel, 1e-3))
    op = next(op for op in ALL if op.name == "hc_post")
    found = judge.judge(op, sound, CheckLimits(), SMALL, lambda: None)
    assert found.outcome == outcome
    assert found.bytes is not None
    assert found.seconds == kernel


def test_a_child_ends_with_its_parent() -> None:
    """A program that is killed leaves no process behind that waits for a GPU."""
    code = (
        "import sys\nfrom dsv4_mlx.ops.selftest import supervisor as parent\n"
        "from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal\n"
        "from ops.selftest.scripted import SMALL\n"
        "import subprocess as s, os, threading, time\nreal = s.Popen\n"
        "def popen(*a, **k):\n    p = real(*a, **k); print(p.pid, flush=True); return p\n"
        "s.Popen = popen\n"
        "loads = parent.json.loads\n"
        "def heard(line):\n    print(line.decode(), flush=True); return loads(line)\n"
        "parent.json.loads = heard\n"
        "metal = Metal('ops.selftest.scripted:hanging', '', '', '', shape=SMALL)\n"
        "parent.check(metal, ['hc_post'], CheckLimits(60.0))\n"
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
