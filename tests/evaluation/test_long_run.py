"""The long answer and the needles: what each of their judgements finds."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from evaluation.acceptance_helpers import quiet

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.evaluation import long_run as long
from dsv4_mlx.evaluation.long_run import NumericsName, long_answer, looping
from dsv4_mlx.evaluation.needles import ASKED, CODES, OVER, haystack, name_of, needles
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.ops.table import REFERENCE
from dsv4_mlx.ops.types import Rounding


@pytest.fixture(scope="module")
def demo() -> Engine:
    return Engine.open(SHIPPED, EngineOptions(numerics="official"))


def opened(**ops: object) -> Engine:
    changed = replace(REFERENCE, **ops)  # type: ignore[arg-type]
    return Engine.open(SHIPPED, EngineOptions(2048, "exact", changed))


def test_a_long_answer() -> None:
    step = long_answer(opened(), 120, quiet, "exact")
    assert (step.ok, step.found) == (True, ())
    assert step.figures["tokens"] == 120
    assert step.figures["scored_again"] == long.SCORED
    assert isinstance(step.figures["error"], float) and step.figures["error"] < 1e-4


def test_it_goes_on_beyond_what_config_allows(demo: Engine) -> None:
    config = replace(demo.config, max_context=64)
    short = Engine(config, demo.manifest, demo.model, demo.prompts, 64)
    step = long_answer(short, 100, quiet, "official")
    assert step.ok is True
    assert step.told[-1] == "config.json allows 64: it went on beyond them"


def test_memory_that_doesnt_allow_it_is_no_fault(demo: Engine) -> None:
    small = Engine(demo.config, demo.manifest, demo.model, demo.prompts, 64)
    step = long_answer(small, 100, quiet, "official")
    assert step.ok is None
    assert "this machine's memory allows 64" in step.found[0]


def test_memory_that_grows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hoard = []

    def head(x: mx.array, *arguments: object, **options: object) -> mx.array:
        if x.shape[1] == 1:
            hoard.append(mx.zeros(10_000))
            mx.eval(hoard[-1])
        return REFERENCE.hc_head(x, *arguments, **options)

    monkeypatch.setattr(long, "LEAK", 1 << 20)
    step = long_answer(opened(hc_head=head), 200, quiet, "exact")
    assert step.ok is False
    assert "memory grew by" in step.found[0]


def test_a_decode_that_a_prefill_contradicts_is_found() -> None:
    def head(x: mx.array, *arguments: object, **options: object) -> mx.array:
        rows = REFERENCE.hc_head(x, *arguments, **options)
        return rows * (1.0 if len(calls) < 120 else -1.0)

    calls: list[int] = []

    def counted(x: mx.array, *arguments: object, **options: object) -> mx.array:
        calls.append(x.shape[1])
        return head(x, *arguments, **options)

    step = long_answer(opened(hc_head=counted), 110, quiet, "exact")
    assert step.ok is False
    assert "decoding and of a prefill" in step.found[0]


def test_a_decode_that_rounds_otherwise_is_found_in_the_numerics_that_round() -> None:
    """Rows of the window are not rounded where one token comes alone: `exact` has nothing to find."""

    def latents(low: mx.array, *rest: Any, rounding: Rounding, **options: Any) -> tuple[mx.array, mx.array]:
        kept = Rounding() if low.shape[1] == 1 else rounding
        return REFERENCE.latents(low, *rest, rounding=kept, **options)

    ops = replace(REFERENCE, latents=latents)
    expected: dict[NumericsName, bool] = {"exact": True, "official": False}
    for numerics, ok in expected.items():
        step = long_answer(Engine.open(SHIPPED, EngineOptions(2048, numerics, ops)), 120, quiet, numerics)
        assert step.ok is ok and step.name == f"long answer, {numerics}"


def test_a_loop_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    free = rng.integers(0, 5, 3000).tolist()
    assert looping(free) is None
    assert looping([]) is None
    assert looping([7]) is None
    turn = rng.integers(0, 1000, 40).tolist()
    start, period, length = looping([*free[:1000], *(turn * 20), *free[:500]]) or (0, 0, 0)
    assert (start, period) == (1040, 40)  # the first repeated token
    assert 760 <= length <= 762
    assert looping([3] * 600) == (1, 1, 599)
    assert looping([*free[:1000], *(turn * 12)]) is None  # 440 repeated tokens


def test_a_haystack(demo: Engine) -> None:
    for length in (300, 1000, 4096):
        made = haystack(demo.prompts, length)
        count = len(demo.prompts.encode(demo.prompts.ask(made.question(0), "off")))
        assert length <= count <= length + OVER
        assert made == haystack(demo.prompts, length)
        for i, (name, code) in enumerate(made.codes):
            assert made.text.count(name) == made.text.count(code) == 1
            where = made.text.index(f"The code of {name} is {code}.") / len(made.text)
            assert where == pytest.approx((i + 0.5) / CODES, abs=0.05 if length < 4000 else 0.01)


def test_the_demo_finds_needles_and_a_model_without_its_far_rows_does_not(demo: Engine) -> None:
    step = needles(demo, 400, quiet)
    assert step.ok is True
    assert len(step.told) == len(ASKED)
    assert re.fullmatch(r"4\d\d tokens, 6% deep: found, \d+\.\d s", step.told[0])

    def nothing_seen(queries: mx.array, *arguments: object, **options: object) -> mx.array:
        return REFERENCE.index_select(-queries, *arguments, **options)

    blind = Engine.open(SHIPPED, EngineOptions(ops=replace(REFERENCE, index_select=nothing_seen)))
    step = needles(blind, 400, quiet)
    assert step.ok is False
    assert all("NOT found" in line for line in step.found)


def test_a_wrong_rope_base_shows_in_what_is_found(tmp_path: Path) -> None:
    """The base of the window's rotation used for compressed layers too: the layers agree with themselves, and
    far needles are lost. A base that is twice what it should be is not seen like this; `numbers` names it."""
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"compress_rope_theta": 10000}))
    step = needles(Engine.open(folder, EngineOptions()), 512, quiet)
    assert step.ok is False
    assert len(step.found) >= 2


def test_a_context_too_short_is_said(demo: Engine) -> None:
    step = needles(demo, 32_768, quiet)
    assert (step.name, step.ok) == (name_of(32_768), None) == ("needles in 32K tokens", None)
    assert step.found == ("needs 32,864 tokens of context, config.json allows 8,192",)
