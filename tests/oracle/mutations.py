"""Deliberately wrong models: mistakes that implementations of this architecture really make.

Each must fail against the goldens, otherwise the goldens don't judge that part. A mutation changes the
config, the weights, or one method of the numpy model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oracle.numpy_model import NumpyModel, rms, rotate

Array = NDArray[Any]
Config = dict[str, Any]


def _identity(_: str, value: Array) -> Array:
    return value


def _keep(_: Config) -> None:
    return None


@dataclass(frozen=True)
class Mutation:
    """`case` is the golden that must notice; `position` is where the model may first go wrong."""

    name: str
    case: str
    model: type[NumpyModel] = NumpyModel
    config: Callable[[Config], None] = _keep
    weights: Callable[[str, Array], Array] = _identity

    def build(self, config: Config, weights: Mapping[str, Array]) -> NumpyModel:
        changed = copy.deepcopy(config)
        self.config(changed)
        return self.model(changed, {name: self.weights(name, weights[name]) for name in weights})


def _set(key: str, value: Any) -> Callable[[Config], None]:
    return lambda config: config.__setitem__(key, value)


def _add(key: str, amount: int) -> Callable[[Config], None]:
    return lambda config: config.__setitem__(key, config[key] + amount)


def _no_yarn(config: Config) -> None:
    config["rope_scaling"]["factor"] = 1


def _zero(ending: str) -> Callable[[str, Array], Array]:
    return lambda name, value: np.zeros_like(value) if name.endswith(ending) else value


def _scaled(ending: str, factor: float) -> Callable[[str, Array], Array]:
    return lambda name, value: value * np.float32(factor) if name.endswith(ending) else value


def _no_overlap(name: str, value: Array) -> Array:
    """Gates so low that the half of a CSA row that looks one window back gets no weight."""
    if not name.endswith(".ape") or value.shape[0] != 4:
        return value
    changed = value.copy()
    changed[:, : value.shape[1] // 2] = -1e9
    return changed


def _swapped_pairs(name: str, value: Array) -> Array:
    """High nibble first."""
    if ".ffn.experts." not in name:
        return value
    return np.ascontiguousarray(value.reshape(*value.shape[:-1], -1, 2)[..., ::-1]).reshape(value.shape)


class MixTransposed(NumpyModel):
    def mix(self, streams: Array, name: str) -> tuple[Array, Array, Array]:
        pre, post, comb = super().mix(streams, name)
        return pre, post, np.swapaxes(comb, 1, 2)


class CollapseWithoutEpsilon(NumpyModel):
    def mix(self, streams: Array, name: str) -> tuple[Array, Array, Array]:
        pre, post, comb = super().mix(streams, name)
        return pre - self.config["hc_eps"], post, comb


class WriteBackWithEpsilon(NumpyModel):
    def mix(self, streams: Array, name: str) -> tuple[Array, Array, Array]:
        pre, post, comb = super().mix(streams, name)
        return pre, post + self.config["hc_eps"], comb


class RowsBeforeColumns(NumpyModel):
    """The mixing matrix ends on a pass over rows."""

    def mix(self, streams: Array, name: str) -> tuple[Array, Array, Array]:
        pre, post, comb = super().mix(streams, name)
        return pre, post, comb / (comb.sum(axis=2, keepdims=True) + self.config["hc_eps"])


class RowEarly(NumpyModel):
    """A compressed row becomes visible one token before its window is complete."""

    def visible_rows(self, x: Array, qr: Array, name: str, ratio: int, frequency: Array) -> Array:
        visible = super().visible_rows(x, qr, name, ratio, frequency)
        early = np.zeros_like(visible)
        early[:-1] = visible[1:]
        return visible | early


class RowLate(NumpyModel):
    def visible_rows(self, x: Array, qr: Array, name: str, ratio: int, frequency: Array) -> Array:
        visible = super().visible_rows(x, qr, name, ratio, frequency)
        late = np.zeros_like(visible)
        late[1:] = visible[:-1]
        return visible & late


class RowsRotatedAtEnd(NumpyModel):
    """Compressed rows take the position of their window's last token."""

    def compress(self, x: Array, name: str, ratio: int, frequency: Array) -> Array:
        rows = super().compress(x, name, ratio, frequency)
        return rotate(rows, np.full(len(rows), ratio - 1), frequency)


class ScoresNotRectified(NumpyModel):
    def index_scores(self, x: Array, qr: Array, name: str, frequency: Array) -> Array:
        return -super().index_scores(-x, qr, name, frequency)


class BiasedWeights(NumpyModel):
    """The router's bias enters the experts' weights."""

    def route(self, x: Array, tokens: Array, name: str) -> tuple[Array, Array]:
        chosen, weight = super().route(x, tokens, name)
        if f"{name}.gate.bias" in self.weights:
            score = np.sqrt(np.logaddexp(0, self.linear(x, f"{name}.gate")))
            biased = np.take_along_axis(score + self.weight(f"{name}.gate.bias"), chosen, axis=-1)
            weight = biased / biased.sum(axis=-1, keepdims=True) * self.config["routed_scaling_factor"]
        return chosen, weight


class SharedNotClamped(NumpyModel):
    def expert(self, x: Array, name: str, scale: Array | None = None) -> Array:
        if scale is not None:
            return super().expert(x, name, scale)
        wide = NumpyModel({**self.config, "swiglu_limit": 1e9}, self.weights)
        return wide.expert(x, name)


class GateClampedBelow(NumpyModel):
    """The gate is clamped on both sides instead of above only."""

    def linear(self, x: Array, name: str) -> Array:
        out = super().linear(x, name)
        return np.maximum(out, -self.config["swiglu_limit"]) if name.endswith(".w1") else out


class HeadWithoutStreams(NumpyModel):
    def collapse_for_head(self, streams: Array, prefix: str) -> Array:
        return np.asarray(streams.mean(axis=1))


class IndexQueryNormed(NumpyModel):
    def linear(self, x: Array, name: str) -> Array:
        out = super().linear(x, name)
        if not name.endswith("indexer.wq_b"):
            return out
        heads = out.reshape(len(out), self.config["index_n_heads"], -1)
        return rms(heads, self.eps).reshape(out.shape)


MUTATIONS = (
    Mutation("no YaRN", "topk", config=_no_yarn),
    Mutation("no YaRN at the released sizes", "heads", config=_no_yarn),
    Mutation("one rotary base", "topk", config=_set("compress_rope_theta", 10000)),
    Mutation("other base on window layers", "topk", config=_set("rope_theta", 160000)),
    Mutation("no clamp", "topk", config=_set("swiglu_limit", 1e9)),
    Mutation("window too long", "topk", config=_add("sliding_window", 1)),
    Mutation("window too short", "windows", config=_add("sliding_window", -1)),
    Mutation("one row too many", "topk", config=_add("index_topk", 1)),
    Mutation("one Sinkhorn pass less", "awkward", config=_add("hc_sinkhorn_iters", -1)),
    Mutation("other mixing epsilon", "awkward", config=_set("hc_eps", 1e-6)),
    Mutation("other norm epsilon", "awkward", config=_set("rms_norm_eps", 1e-6)),
    Mutation("no epsilon in the collapse", "awkward", CollapseWithoutEpsilon),
    Mutation("epsilon in the write back", "awkward", WriteBackWithEpsilon),
    Mutation("rows normed before columns", "awkward", RowsBeforeColumns),
    Mutation("other routed scale", "awkward", config=_set("routed_scaling_factor", 1.5)),
    Mutation("no sinks", "topk", weights=_scaled(".attn_sink", 1e9)),
    Mutation("sinks scaled", "topk", weights=_scaled(".attn_sink", 0.125)),
    Mutation("no gate positions", "windows", weights=_zero(".ape")),
    Mutation("no router bias", "topk", weights=_zero(".gate.bias")),
    Mutation("no overlap", "topk", weights=_no_overlap),
    Mutation("nibbles swapped", "awkward", weights=_swapped_pairs),
    Mutation("mix transposed", "topk", MixTransposed),
    Mutation("row early", "windows", RowEarly),
    Mutation("row late", "windows", RowLate),
    Mutation("rows rotated at window end", "windows", RowsRotatedAtEnd),
    Mutation("scores not rectified", "topk", ScoresNotRectified),
    Mutation("index query normed", "topk", IndexQueryNormed),
    Mutation("bias in weights", "topk", BiasedWeights),
    Mutation("shared expert not clamped", "topk", SharedNotClamped),
    Mutation("gate clamped below", "topk", GateClampedBelow),
    Mutation("plain mean before head", "awkward", HeadWithoutStreams),
)
