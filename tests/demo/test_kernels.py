"""The demo model as a Mac would run it: bfloat16 activations, every kernel executed by the emulator."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven

from bench.demo_model import compare, models
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.ops.table import with_kernels

PROMPTS = 3
LONGEST = 24  # tokens of an answer that are compared
SAME = 0.98  # share of positions with the token that float32 says
KL = 0.01  # nats, mean over positions

product = mx.quantized_matmul


def _as_metal(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None = None, **how: Any
) -> mx.array:
    """A quantised product as Metal makes it: added in float32, then rounded. The CPU adds in x's type."""
    if scales.dtype != mx.uint8:
        scales = scales.astype(mx.float32)
    biases = None if biases is None else biases.astype(mx.float32)
    return product(x.astype(mx.float32), w, scales, biases, **how).astype(x.dtype)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "native"
    convert(SHIPPED, folder)
    return folder


@pytest.fixture
def machine() -> Proven:
    return Proven(check=False, remember=False)


@pytest.fixture
def on_metal(native: Path, machine: Proven) -> Iterator[Engine]:
    with (
        mock.patch("dsv4_mlx.weights.load.activation_dtype", lambda: mx.bfloat16),
        mock.patch.object(mx, "quantized_matmul", _as_metal),
    ):
        yield models.converted(native, with_kernels(machine))


def kl(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    """KL(expected || found) of logits [N, V], nats."""
    p, q = (x.astype(np.float64) - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (expected, found))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=-1))


@pytest.mark.long
def test_bfloat16_with_kernels_says_what_float32_says(
    native: Path, on_metal: Engine, machine: Proven
) -> None:
    plain = models.converted(native)
    same, divergences, spread = [], [], 0.0
    for prompt in compare.prompts(plain, random.Random(7), PROMPTS):
        said, expected = compare.greedy(plain, prompt)
        said, expected = said[:LONGEST], expected[:LONGEST]
        session = on_metal.session()
        rows = [session.sync(prompt), *(session.advance(token) for token in said[:-1])]
        found = np.stack(rows)
        same += (found.argmax(axis=-1) == np.array(said)).tolist()
        divergences += kl(expected, found).tolist()
        spread = max(spread, float(np.abs(found - expected).max()))
    share, divergence = float(np.mean(same)), float(np.mean(divergences))
    assert on_metal.model.dtype == mx.bfloat16 and spread > 0.01  # it was rounded
    largest = max(divergences)
    print(
        f"{len(same)} positions: {share:.1%} the same token, KL {divergence:.2g}, at most {largest:.2g}, "
        f"logits {spread:.2g} apart at most"
    )
    assert machine.ran >= {"attend", "index_select_best", "expert_ffn_sorted_down", "group_project_tiles"}
    assert share >= SAME and divergence <= KL
