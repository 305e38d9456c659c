"""The whole model with every kernel executed by the emulator, prefill and decode."""

from __future__ import annotations

from collections import Counter
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Checkpoints
from compare import LOGITS, OFFICIAL_TOP1, assert_close
from ops.kernels.proven import Proven

from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.op import KernelOp
from dsv4_mlx.ops.table import NUMERICS, with_kernels
from dsv4_mlx.weights.load import find_model, open_model

PROMPT = (130, 150)  # ends of its chunks: one closes a row of 128 tokens, the next is short
Array = np.ndarray


def answer(
    model: Transformer, tokens: Array, steps: int, forced: list[int] | None = None
) -> tuple[Array, list[int]]:
    """Logits of a prompt and of `steps` tokens after it, the greedy ones or those `forced`; greedy tokens."""
    state, start, rows = model.new_state(), 0, []
    pieces: list[Any] = [tokens[a:b] for a, b in zip((0, *PROMPT), PROMPT, strict=False)]
    chosen: list[int] = []
    for _ in range(len(PROMPT) + steps):
        piece = pieces.pop(0) if pieces else [(forced or chosen)[len(chosen) - 1]]
        logits = model(mx.array(np.asarray(piece, np.int32)[None]), state)
        mx.eval(logits, *state.arrays())
        rows.append(np.array(logits[0]))
        start += len(piece)
        if not pieces:
            chosen.append(int(rows[-1][-1].argmax()))
    return np.concatenate(rows), chosen


@pytest.fixture
def declined(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Calls that kernels gave to their references, by op."""
    calls: Counter[str] = Counter()
    refuses = {op.name: op.refuses for op in ALL}

    def bound(self: KernelOp, launcher: Any, otherwise: Any = None) -> Any:
        def op(*arguments: Any, **options: Any) -> Any:
            if refuses[self.name](*arguments, **options) is None:
                return self.call(launcher, *arguments, **options)
            calls[self.name] += 1
            return otherwise(*arguments, **options)

        return op

    monkeypatch.setattr(KernelOp, "bound", bound)
    return calls


def executed(checkpoints: Checkpoints, numerics: str, machine: Proven) -> Transformer:
    stored = find_model(checkpoints.converted("small"))
    return open_model(stored, with_kernels(machine), NUMERICS[numerics]).model


@pytest.fixture
def tokens() -> Array:
    """One prompt, whatever a test is called: with some, so many values lie on a rounding edge that two
    equally right paths part in `official`."""
    return np.random.default_rng(3875090456).integers(8, 600, PROMPT[-1])


@pytest.mark.parametrize("steps", [12, pytest.param(64, marks=pytest.mark.long)])
def test_exact(checkpoints: Checkpoints, tokens: Array, declined: Counter[str], steps: int) -> None:
    machine = Proven(check=False, remember=False)
    expected, said = answer(checkpoints.model("small"), tokens, steps)
    found, same = answer(executed(checkpoints, "exact", machine), tokens, steps)
    assert_close(found, expected, LOGITS, "logits with kernels")
    assert same == said
    # Only products of whole chunks are MLX's own: compressors, router's is in `route`, index weights.
    assert set(declined) == {"project"}
    assert machine.ran >= {"attend", "index_select_best", "compress", "route", "route_hashed", "hc_pre_mix"}


def test_official(checkpoints: Checkpoints, tokens: Array) -> None:
    """One value on the other side of a rounding edge changes what comes after: median and first tokens."""
    expected, said = answer(checkpoints.model("small", "official"), tokens, 16)
    model = executed(checkpoints, "official", Proven(check=False, remember=False))
    found, _ = answer(model, tokens, 16, said)
    assert float(np.median(np.abs(found - expected)) / expected.std()) <= LOGITS
    assert (found.argmax(-1) == expected.argmax(-1)).mean() >= OFFICIAL_TOP1


@pytest.mark.long
@pytest.mark.parametrize("numerics", ["exact", "official"])
def test_no_access_is_wrong(checkpoints: Checkpoints, tokens: Array, numerics: str) -> None:
    """At the shapes of a model, prefill and the steps that close groups: every access judged."""
    answer(executed(checkpoints, numerics, Proven(schedules=2, remember=False)), tokens, 6)
