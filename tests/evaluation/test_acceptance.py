"""`check` on small models: sound ones pass, and each planted damage is found and named."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from checkpoints import Checkpoints
from evaluation.acceptance_helpers import accepted, offset_of, overwrite

from dsv4_mlx.cli.check import _text as report_text
from dsv4_mlx.cli.main import run as cli
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import Progress, UsageError
from dsv4_mlx.evaluation.acceptance import AcceptanceOptions, AcceptanceTools, accept
from dsv4_mlx.evaluation.long_run import cuts
from dsv4_mlx.evaluation.report import Acceptance, AcceptanceStep, Bar
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.ops.selftest.verdicts import Verdict
from dsv4_mlx.ops.table import REFERENCE, Ops
from dsv4_mlx.ops.types import Rounding, Streams

SHORT = pytest.mark.usefixtures("short_cuts")
STEPS = ["files", "numbers", "kernels", "layers", "cuts, exact", "cuts, official"]
LONG = ["long answer, official", "long answer, exact"]


def test_a_sound_model_passes(checkpoints: Checkpoints) -> None:
    found = accepted(checkpoints.converted("small"), verdicts=(Verdict("attend", "works"),))
    assert list(found) == [*STEPS, "log-probabilities", *LONG]
    assert all((found[name].ok, found[name].found) == (True, ()) for name in STEPS)
    assert [found[name].ok for name in ("log-probabilities", *LONG)] == [None] * 3
    report = json.dumps(Acceptance(tuple(found.values()), {}, True).to_json())
    assert str(checkpoints.cache) not in report


@SHORT
@pytest.mark.long
def test_an_official_checkpoint_passes(checkpoints: Checkpoints) -> None:
    found = accepted(checkpoints.official("small"))
    assert found["files"].ok is None
    assert all(found[name].ok for name in ("numbers", "layers", "cuts, exact", "cuts, official"))


def leaning(streams: Streams) -> mx.array:
    """An op whose result depends on how many tokens are in a chunk."""
    x = REFERENCE.hc_post(streams)
    return x * (1 + 1e-3 * (x.shape[1] % 5))


def test_cuts_that_matter_are_found(checkpoints: Checkpoints) -> None:
    ops = replace(
        REFERENCE, hc_pre=lambda streams, *a, **k: REFERENCE.hc_pre(Streams(leaning(streams)), *a, **k)
    )
    engine = Engine.open(checkpoints.converted("small"), EngineOptions(512, "exact", ops))
    step = cuts(engine, "exact")
    assert step.ok is False
    assert "cut every 97 tokens" in step.found[0]


def unrounded(low: mx.array, *rest: Any, rounding: Rounding, **options: Any) -> tuple[mx.array, mx.array]:
    """The row of the window as it is where few tokens come together."""
    kept = Rounding() if low.shape[1] < 100 else rounding
    return REFERENCE.latents(low, *rest, rounding=kept, **options)


def test_rounding_that_depends_on_a_cut_is_found_in_the_numerics_that_round() -> None:
    steps = {}
    for numerics in ("exact", "official"):
        engine = Engine.open(SHIPPED, EngineOptions(512, numerics, replace(REFERENCE, latents=unrounded)))
        steps[numerics] = cuts(engine, numerics)
        assert steps[numerics].figures["same_best_token"].keys() == {"97", "256"}  # type: ignore[attr-defined]
    assert (steps["exact"].ok, steps["official"].ok) == (True, False)
    assert "cut every 97 tokens" in steps["official"].found[0]


def silent(ops: Ops) -> Ops:
    """Logits of a device that failed: all zero."""
    return replace(ops, hc_head=lambda x, *rest, **options: mx.zeros((*x.shape[:2], x.shape[-1])))


@SHORT
def test_a_device_that_fails_is_a_finding(checkpoints: Checkpoints) -> None:
    found = accepted(
        checkpoints.converted("small"), silent(REFERENCE), wanted=AcceptanceOptions(True, lengths=(64,))
    )
    for name in ("cuts, exact", "cuts, official", "needles in 64 tokens"):
        assert found[name].ok is False
        assert "not numbers or all zero" in found[name].found[0]


def test_a_source_is_for_converted_folders(checkpoints: Checkpoints) -> None:
    folder = checkpoints.official("small")
    with pytest.raises(UsageError, match="--against is for a converted folder"):
        accepted(folder, wanted=AcceptanceOptions(against=folder))


def interrupted_at(name: str) -> Bar:
    """A bar whose work is interrupted when it has got somewhere."""

    @contextmanager
    def bar(title: str, unit: str) -> Iterator[Progress]:
        def show(done: int, total: int) -> None:
            if title == name and done >= 2:
                raise KeyboardInterrupt

        yield show

    return bar


def test_what_was_known_when_it_was_interrupted(checkpoints: Checkpoints) -> None:
    kept: list[Acceptance] = []
    bar = interrupted_at("layers")
    with pytest.raises(KeyboardInterrupt):
        accept(
            checkpoints.converted("small"),
            AcceptanceTools(REFERENCE),
            AcceptanceOptions(True),
            bar,
            kept.append,
        )
    assert [len(known.steps) for known in kept] == [1, 2, 3, 3]
    last = kept[-1].to_json()
    assert (last["ok"], last["complete"]) == (False, False)
    assert re.fullmatch(r"interrupted, while at: layers: 2 of \d layers", last["stopped"])


FIELDS = {
    "dsv4-mlx", "mlx", "python", "machine", "memory", "ops", "expert_memory", "recipe", "checkpoint",
    "identity", "layers", "experts", "bytes",
}  # fmt: skip


@SHORT
def test_the_command_on_the_demo(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a user runs, with the needles in a shorter text, paged; and the report."""
    shorter = partial(AcceptanceOptions, lengths=(400,))
    monkeypatch.setattr("dsv4_mlx.evaluation.acceptance.AcceptanceOptions", shorter)
    report = tmp_path / "report.json"
    assert cli(["check", "demo", "--quick", "--expert-memory", "50%", "--report", str(report)]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^  4\d\d tokens, \d+% deep: found, ", out, re.M)) == 3
    written = json.loads(report.read_text())
    assert (written["ok"], written["complete"], written["quick"]) == (True, True, True)
    assert written["made_with"].keys() == FIELDS
    assert all(step["seconds"] >= 0 and step["ok"] is not False for step in written["steps"])
    assert not re.search(r"code of|/tmp|/home|demo/|story", report.read_text())
    assert str(home) not in report.read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.long
def test_all_of_it_on_the_demo(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """Nothing shortened: needles in 4K tokens, and an answer of 20,000."""
    report = tmp_path / "report.json"
    call = [sys.executable, "-m", "dsv4_mlx", "check", "demo", "--against", str(SHIPPED)]
    done = subprocess.run([*call, "--report", str(report)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(report.read_text())["steps"]}
    assert [name for name, step in steps.items() if step["ok"] is None] == [
        "kernels", "log-probabilities", "needles in 32K tokens", "needles in 64K tokens",
    ]  # fmt: skip
    assert [steps[name]["figures"]["tokens"] for name in LONG] == [20_000, 5_000]
    for name in ("needles in 4K tokens", *LONG):
        record_property(name, "; ".join(steps[name]["told"]))
    assert "20000 tokens, " in done.stderr and " left" in done.stderr


def test_the_command_on_a_damaged_model(copy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    overwrite(copy / "head.safetensors", offset_of(copy / "head.safetensors", "head.weight"), b"\x01\x02\x03")
    command = [sys.executable, "-m", "dsv4_mlx", "check", str(copy), "--quick", "--report", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "files: WRONG" in done.stdout
    assert "head.weight" in done.stdout
    assert done.stderr.splitlines()[-2].startswith("error: this model is not accepted here: files")
    written = json.loads(report.read_text())
    assert (written["ok"], written["complete"]) == (False, True)
    assert str(tmp_path) not in report.read_text()


def test_a_report_names_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler's message may hold the path of what it compiled."""
    monkeypatch.setenv("HOME", str(tmp_path / 'a "home"'))
    verdict = Verdict("attend", "fails", f'{tmp_path}/a "home"/Library/x.metal:3: error')
    known = Acceptance((AcceptanceStep("kernels", False, (verdict.sentence(),)),), {}, True)
    assert str(tmp_path) not in report_text(known)
    assert "~/Library/x.metal:3: error" in report_text(known)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--report", "missing/report.json"), "there is no folder 'missing' to write to"),
        (("--report", "/dev/null"), "the report would have to replace something that is no file"),
        (("--expert-memory", "5kg"), "--expert-memory is '5kg', expected"),
        (("--against", "missing"), "there is no folder 'missing'"),
        (("--logprobs", "missing"), "the file can't be read"),
    ],
)
def test_wrong_options_are_said_before_the_work(
    options: tuple[str, str], said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli(["check", str(SHIPPED), *options]) == 2
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.startswith(f"error: {said}")


def test_ctrl_c_leaves_a_report(copy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "dsv4_mlx", "check", str(copy), "--report", str(report)]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("cuts, official:"):
            break
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130
    assert errors.splitlines()[-1] == "error: interrupted"
    written = json.loads(report.read_text())
    assert written["stopped"].startswith("interrupted, while at: ")
    assert [step["name"] for step in written["steps"]][:6] == STEPS
    assert str(tmp_path) not in report.read_text()
