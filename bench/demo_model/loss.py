"""One training batch through the model: what it costs, and the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from bench.demo_model.fastops import Watch, exp, training_ops
from bench.demo_model.weights import Parameters, tensors
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.state import ModelState
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.table import EXACT, OFFICIAL

GROWTH = 128  # tokens by which row buffers grow: the runtime's step would be mostly zeros
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Batch:
    """Rows of one kind. `at`: positions (flattened [B * T]) whose next token is trained; `labels` those
    tokens. `query`, `source`, `valid` [B, M]: as in Watch."""

    kind: str
    tokens: Ints
    at: Ints
    labels: Ints
    query: Ints
    source: Ints
    valid: npt.NDArray[np.float32]
    exact: Ints  # [len(at)] which segment a trained token belongs to, for counting whole answers
    weights: npt.NDArray[np.float32]  # [len(at)]


@dataclass(frozen=True)
class Stage:
    """What a stretch of training switches on."""

    guide: float = 0.3
    index: float = 0.0  # weight of the indexer's divergence
    select: bool = False
    mtp: float = 0.0
    rounding: bool = False  # weights and rows as the official formats keep them
    iterations: int = 5


class _Detached:
    """An indexer that learns from its own loss only: the trunk does not bend to it."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, x: mx.array, qr: mx.array, state: Any, plan: Any) -> Any:
        return self.inner(mx.stop_gradient(x), mx.stop_gradient(qr), state, plan)


def build(config: ModelConfig, parameters: Parameters, stage: Stage, watch: Watch) -> Transformer:
    config = replace(config, sinkhorn_iterations=stage.iterations)
    numerics = OFFICIAL if stage.rounding else EXACT
    model = Transformer(config, tensors(config, parameters), training_ops(config.window, watch), numerics)
    for block in model.blocks:
        if block.attn.kind.indexed:
            block.attn.indexer = cast(Any, _Detached(block.attn.indexer))
    return model


def losses(
    parameters: Parameters, config: ModelConfig, batch: Batch, stage: Stage
) -> tuple[mx.array, dict[str, Any]]:
    """The scalar to minimise, and what to report."""
    watch = Watch(select=stage.select, learn=stage.index > 0)
    if batch.query.shape[1] and stage.guide:
        watch.query, watch.source, watch.valid = map(mx.array, (batch.query, batch.source, batch.valid))
    model = build(config, parameters, stage, watch)
    tokens = mx.array(batch.tokens)
    state = model.new_state(tokens.shape[0], GROWTH)
    streams = model.streams(tokens, state)
    at, labels = mx.array(batch.at), mx.array(batch.labels)
    logits = model.vocabulary(model.head(_taken(streams, at)))[0]
    each = _entropy(logits, labels)
    weights = mx.array(batch.weights)
    total = mx.sum(each * weights) / mx.sum(weights)
    report: dict[str, Any] = {"loss": total, "top": mx.argmax(logits, axis=-1), "loads": watch.loads}
    if watch.guides:
        guide = sum(watch.guides) / len(watch.guides)
        report["guide"] = guide
        total = total + stage.guide * guide
    if watch.divergences:
        divergence = sum(watch.divergences) / len(watch.divergences)
        report["index"] = divergence
        total = total + stage.index * divergence
    if stage.mtp:
        draft = _draft(model, mx.stop_gradient(streams), tokens, state, batch, report)
        total = total + stage.mtp * draft
    return total, report


def _draft(
    model: Transformer, streams: mx.array, tokens: mx.array, state: ModelState, batch: Batch,
    report: dict[str, Any],
) -> mx.array:  # fmt: skip
    """The MTP block's loss: where t + 2 is trained, given the trunk's streams at t and token t + 1."""
    rows = tokens.shape[1] - 1
    # A trained position p (label at p + 1) is drafted from p - 1.
    at = batch.at
    usable = np.nonzero(at % tokens.shape[1] > 0)[0]
    at, labels = at[usable] - 1, batch.labels[usable]
    shorter = (at // tokens.shape[1]) * rows + at % tokens.shape[1]
    plan = model.planner.plan(0, rows)
    following = tokens[:, 1:]
    block = model.drafts[0]
    x = block(streams[:, :-1], model.embed(following), following, state, plan)
    logits = model.vocabulary(block.head(_taken(x, mx.array(shorter))))[0]
    truth = mx.array(labels)
    report["drafted"] = mx.mean(mx.argmax(logits, axis=-1) == truth)
    return mx.mean(_entropy(logits, truth))


def _taken(streams: mx.array, at: mx.array) -> mx.array:
    """Streams [B, T, C, D] at flattened positions -> [1, M, C, D]."""
    batch, count, copies, width = streams.shape
    flat = streams.reshape(batch * count, copies * width)
    return mx.take(flat, at, axis=0).reshape(1, -1, copies, width)


def _entropy(logits: mx.array, labels: mx.array) -> mx.array:
    top = mx.stop_gradient(mx.max(logits, axis=-1, keepdims=True))
    total = mx.log(mx.sum(exp(logits - top), axis=-1)) + top[:, 0]
    return total - mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]


def gradient(
    parameters: Parameters, config: ModelConfig, batch: Batch, stage: Stage
) -> tuple[Parameters, dict[str, Any]]:
    """Gradients by name (zero where a part took no part), and the report."""
    run = mx.value_and_grad(lambda p: losses(p, config, batch, stage))
    (_, report), grads = run(parameters)
    mx.eval(grads, report)
    return grads, report
