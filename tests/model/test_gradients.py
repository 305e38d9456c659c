"""The model on plain floats can be trained: gradients are finite and are the derivatives."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import run
from compare import assert_bits
from mlx.nn.losses import cross_entropy
from mlx.nn.utils import value_and_grad
from mlx.utils import tree_flatten, tree_unflatten
from small_model import tiny_model, token_ids

from bench.demo_model.trainable import TRAINABLE
from dsv4_mlx.model.transformer import Transformer

TOKENS = token_ids(np.random.default_rng(6), 140)
IDS = mx.array([TOKENS])


def loss(model: Transformer) -> mx.array:
    logits = model(IDS[:, :-1], model.new_state())
    return cross_entropy(logits, IDS[:, 1:], reduction="mean")


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model(ops=TRAINABLE)


@pytest.fixture(scope="module")
def gradients(model: Transformer) -> dict[str, mx.array]:
    _, found = value_and_grad(model, loss)(model)
    return dict(tree_flatten(found))


def test_trainable_ops_give_the_same_bits(model: Transformer) -> None:
    assert_bits(run(model, TOKENS, [9, 130]), run(tiny_model(), TOKENS, [9, 130]))


def test_every_parameter_has_a_finite_gradient(model: Transformer, gradients: dict[str, mx.array]) -> None:
    parameters = dict(tree_flatten(model.trainable_parameters()))  # type: ignore[no-untyped-call]
    assert gradients.keys() == parameters.keys()
    silent = []
    for name, gradient in gradients.items():
        assert gradient.shape == parameters[name].shape
        assert mx.isfinite(gradient).all(), name
        if not mx.any(gradient != 0):
            silent.append(name)
    # Choices have no slope: the router's bias, and what only ranks rows for the indexer.
    assert all("indexer" in name or "index_norm" in name or name.endswith("ffn.bias") for name in silent), (
        silent
    )
    assert silent


@pytest.mark.parametrize(
    "part",
    [
        "embed.table.weight", "vocabulary.weight", "head.fn", "blocks.0.attn.sinks",
        "blocks.0.attn.wq_b.weight",
        "blocks.1.attn.compressor.weight", "blocks.1.attn_hc.fn", "blocks.1.ffn_hc.base",
        "blocks.2.attn.compressor.bias", "blocks.2.attn.wo_a.weight", "blocks.2.ffn.experts.gate_up",
        "blocks.2.ffn.gate", "blocks.2.ffn.shared_down.weight",
    ],
)  # fmt: skip
def test_gradients_are_derivatives(part: str) -> None:
    """Along the gradient itself, where the slope is steepest and float32 noise matters least.

    All experts and all rows are taken: a choice that flips between the two sides would be a step.
    """
    model = tiny_model(ops=TRAINABLE, index_topk=64, num_experts_per_tok=4)
    _, found = value_and_grad(model, loss)(model)
    gradient = dict(tree_flatten(found))[part]
    value = dict(tree_flatten(model.trainable_parameters()))[part]  # type: ignore[no-untyped-call]
    size = mx.sqrt(mx.sum(gradient * gradient))
    step, sides = 2e-3 / float(size), []
    for sign in (1, -1):
        model.update(tree_unflatten([(part, value + sign * step * gradient / size)]))
        sides.append(float(loss(model)))
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(float(size), rel=0.02)
