"""The whole model in plain numpy, one shot over a token sequence, written from the formulas.

No caches, no chunks, no fused steps: every position is computed from the full sequence, so that what is
hard in the real implementation (state, rings, partial windows) is absent here.

Arithmetic is float64 on weights that are float32 exactly. The oracle's own rounding is then negligible and
a measured difference belongs to the implementation under test. The two exceptions are part of the
definition: rotary angles are float32 products of float32 numbers, and the simulated quantisers work on
float32 values. `dtype=np.float32` shows how much an honest float32 implementation may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from oracle.quantisers import hadamard, q4, q8

Array = NDArray[Any]
Numerics = Literal["exact", "official"]


@dataclass
class Trace:
    """What happened inside a run: how close every discrete choice was, and whether clamps acted."""

    index_margin: float = np.inf
    router_margin: float = np.inf
    index_selections: int = 0
    router_selections: int = 0
    clamped: dict[str, int] = field(default_factory=dict)
    activations: int = 0

    def choice(self, kind: str, scores: Array, count: int) -> None:
        """Note the gap between the last chosen and the first left-out score, relative to the largest."""
        if count >= len(scores):
            return  # nothing is left out
        ranked = np.sort(scores)[::-1]
        margin = float((ranked[count - 1] - ranked[count]) / max(np.abs(ranked).max(), 1e-30))
        if kind == "index":
            self.index_margin = min(self.index_margin, margin)
            self.index_selections += 1
        else:
            self.router_margin = min(self.router_margin, margin)
            self.router_selections += 1

    def clamp(self, gate: Array, up: Array, limit: float, kind: str) -> None:
        count = int((gate > limit).sum() + (np.abs(up) > limit).sum())
        self.clamped[kind] = self.clamped.get(kind, 0) + count
        self.activations += gate.size + up.size


def sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def softmax(x: Array, axis: int) -> Array:
    weight = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(weight / weight.sum(axis=axis, keepdims=True))


def rms(x: Array, eps: float) -> Array:
    return np.asarray(x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps))


def rope_frequencies(config: Mapping[str, Any], ratio: int) -> Array:
    """Radians per position for each channel pair, in float32; YaRN on compressed layers only."""
    dim = config["qk_rope_head_dim"]
    base = float(config["compress_rope_theta"] if ratio else config["rope_theta"])
    frequency = base ** (-np.arange(0, dim, 2) / dim)
    if ratio:
        yarn = config["rope_scaling"]

        def correction(rotations: float) -> float:
            turns = yarn["original_max_position_embeddings"] / (rotations * 2 * np.pi)
            return float(dim * np.log(turns) / (2 * np.log(base)))

        low = max(np.floor(correction(yarn["beta_fast"])), 0)
        high = min(np.ceil(correction(yarn["beta_slow"])), dim - 1)
        if low == high:
            high += 0.001  # a step instead of a division by zero
        slow = np.clip((np.arange(dim // 2) - low) / (high - low), 0, 1)
        frequency = frequency * (1 - slow) + frequency / yarn["factor"] * slow
    return np.asarray(frequency, dtype=np.float32)


def rotate(x: Array, positions: Array, frequency: Array, direction: int = 1) -> Array:
    """Rotate interleaved pairs of the last channels of x [T, ..., d] by position (or back: -1)."""
    angle = np.multiply.outer(positions.astype(np.float32), frequency).astype(x.dtype)
    angle = angle.reshape(len(positions), *(1,) * (x.ndim - 2), len(frequency))
    cos, sin = np.cos(angle), direction * np.sin(angle)
    split = x.shape[-1] - 2 * len(frequency)
    first, second = x[..., split::2], x[..., split + 1 :: 2]
    turned = np.stack([first * cos - second * sin, first * sin + second * cos], axis=-1)
    return np.concatenate([x[..., :split], turned.reshape(*x.shape[:-1], -1)], axis=-1)


class NumpyModel:
    """`weights` maps official names to decoded arrays; `config` is the official config.json.

    `trace` collects facts about the last call of `layers`, `streams` or `logits`.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        weights: Mapping[str, Array],
        numerics: Numerics = "exact",
        dtype: type[np.floating[Any]] = np.float64,
    ) -> None:
        if numerics not in ("exact", "official"):
            raise ValueError(f"unknown numerics {numerics!r}")
        self.config, self.weights, self.official = config, weights, numerics == "official"
        self.dtype = dtype
        self.eps = float(config["rms_norm_eps"])
        self.trace = Trace()

    def weight(self, name: str) -> Array:
        return self.weights[name].astype(self.dtype)

    def linear(self, x: Array, name: str) -> Array:
        return np.asarray(x @ self.weight(f"{name}.weight").T)

    def norm(self, x: Array, name: str) -> Array:
        return np.asarray(rms(x, self.eps) * self.weight(f"{name}.weight"))

    # Hyper-connections

    def mix(self, streams: Array, name: str) -> tuple[Array, Array, Array]:
        """Weights to collapse the streams [T, n], to write back [T, n], to mix them [T, from, to]."""
        n, eps = self.config["hc_mult"], self.config["hc_eps"]
        flat = streams.reshape(len(streams), -1)
        m = rms(flat, self.eps) @ self.weight(f"{name}_fn").T
        base, scale = self.weight(f"{name}_base"), self.weight(f"{name}_scale")
        pre = sigmoid(m[:, :n] * scale[0] + base[:n]) + eps
        post = 2 * sigmoid(m[:, n : 2 * n] * scale[1] + base[n : 2 * n])
        comb = softmax((m[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(-1, n, n), axis=2) + eps
        comb = comb / (comb.sum(axis=1, keepdims=True) + eps)
        for _ in range(self.config["hc_sinkhorn_iters"] - 1):
            comb = comb / (comb.sum(axis=2, keepdims=True) + eps)
            comb = comb / (comb.sum(axis=1, keepdims=True) + eps)
        return pre, post, comb

    def collapse_for_head(self, streams: Array, prefix: str) -> Array:
        flat = streams.reshape(len(streams), -1)
        m = rms(flat, self.eps) @ self.weight(f"{prefix}hc_head_fn").T
        pre = sigmoid(m * self.weight(f"{prefix}hc_head_scale") + self.weight(f"{prefix}hc_head_base"))
        return np.asarray(np.einsum("tj,tjd->td", pre + self.config["hc_eps"], streams))

    # Attention

    def compress(self, x: Array, name: str, ratio: int, frequency: Array) -> Array:
        """Compressed rows of all complete windows, normed and rotated: [T // ratio, d]."""
        entries = len(x) // ratio
        if not entries:
            return np.zeros((0, len(self.weights[f"{name}.norm.weight"])), dtype=self.dtype)
        keys, gates = (self.linear(x, f"{name}.{part}")[: entries * ratio] for part in ("wkv", "wgate"))
        keys, gates = keys.reshape(entries, ratio, -1), gates.reshape(entries, ratio, -1)
        gates = gates + self.weight(f"{name}.ape")
        if ratio == 4:  # windows overlap: first half of the channels looks one window back
            d = keys.shape[-1] // 2
            before_k = np.zeros((entries, ratio, d), dtype=self.dtype)
            before_g = np.full((entries, ratio, d), -np.inf, dtype=self.dtype)
            before_k[1:], before_g[1:] = keys[:-1, :, :d], gates[:-1, :, :d]
            keys = np.concatenate([before_k, keys[..., d:]], axis=1)
            gates = np.concatenate([before_g, gates[..., d:]], axis=1)
        rows = self.norm((softmax(gates, axis=1) * keys).sum(axis=1), f"{name}.norm")
        return rotate(rows, np.arange(entries) * ratio, frequency)

    def stored_row(self, rows: Array) -> Array:
        """Key/value rows as the cache holds them."""
        split = self.config["head_dim"] - self.config["qk_rope_head_dim"]
        if not self.official or not rows.size:
            return rows
        kept = q8(rows[:, :split], math.gcd(split, 64)).astype(self.dtype)
        return np.concatenate([kept, rows[:, split:]], axis=-1)

    def index_form(self, x: Array) -> Array:
        return q4(hadamard(x)).astype(self.dtype) if self.official and x.size else x

    def index_scores(self, x: Array, qr: Array, name: str, frequency: Array) -> Array:
        """Score of every compressed row for every token: [T, T // 4]."""
        heads, dim = self.config["index_n_heads"], self.config["index_head_dim"]
        query = self.linear(qr, f"{name}.wq_b").reshape(len(x), heads, dim)
        query = self.index_form(rotate(query, np.arange(len(x)), frequency))
        key = self.index_form(self.compress(x, f"{name}.compressor", 4, frequency))
        factor = self.linear(x, f"{name}.weights_proj") * (dim * heads) ** -0.5
        return np.asarray(np.einsum("th,the->te", factor, np.maximum(query @ key.T, 0)))

    def visible_rows(self, x: Array, qr: Array, name: str, ratio: int, frequency: Array) -> Array:
        """Which compressed rows each token attends to: bool [T, T // ratio]."""
        entries = len(x) // ratio
        counts = (np.arange(len(x)) + 1) // ratio
        visible: Array = np.arange(entries) < counts[:, None]
        topk = self.config["index_topk"]
        if ratio != 4 or entries <= topk:
            return visible
        scores = self.index_scores(x, qr, f"{name}.indexer", frequency)
        for t in np.flatnonzero(counts > topk):
            row = scores[t, : counts[t]]
            self.trace.choice("index", row, topk)
            visible[t] = False
            visible[t, np.argsort(-row, kind="stable")[:topk]] = True
        return visible

    def attention(self, x: Array, name: str, ratio: int) -> Array:
        cfg, tokens = self.config, len(x)
        heads, dim, positions = cfg["num_attention_heads"], cfg["head_dim"], np.arange(len(x))
        frequency = rope_frequencies(cfg, ratio)
        qr = self.norm(self.linear(x, f"{name}.wq_a"), f"{name}.q_norm")
        query = rms(self.linear(qr, f"{name}.wq_b").reshape(tokens, heads, dim), self.eps)
        query = rotate(query, positions, frequency)
        row = rotate(self.norm(self.linear(x, f"{name}.wkv"), f"{name}.kv_norm"), positions, frequency)
        rows = self.stored_row(row)
        age = positions[:, None] - positions
        seen: Array = (age >= 0) & (age < cfg["sliding_window"])
        if ratio:
            pooled = self.stored_row(self.compress(x, f"{name}.compressor", ratio, frequency))
            rows = np.concatenate([rows, pooled])
            seen = np.concatenate([seen, self.visible_rows(x, qr, name, ratio, frequency)], axis=1)
        scores = np.einsum("thd,nd->htn", query, rows, optimize=True) * dim**-0.5
        scores = np.where(seen, scores, -np.inf)
        sink = np.broadcast_to(self.weight(f"{name}.attn_sink")[:, None, None], (heads, tokens, 1))
        share = softmax(np.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]
        out = rotate(np.swapaxes(share @ rows, 0, 1), positions, frequency, direction=-1)
        grouped = out.reshape(tokens, cfg["o_groups"], -1)
        wo_a = self.weight(f"{name}.wo_a.weight").reshape(cfg["o_groups"], cfg["o_lora_rank"], -1)
        low = np.einsum("tgi,gri->tgr", grouped, wo_a, optimize=True).reshape(tokens, -1)
        return self.linear(low, f"{name}.wo_b")

    # Experts

    def expert(self, x: Array, name: str, scale: Array | None = None) -> Array:
        limit = self.config["swiglu_limit"]
        gate, up = self.linear(x, f"{name}.w1"), self.linear(x, f"{name}.w3")
        self.trace.clamp(gate, up, limit, "shared" if scale is None else "routed")
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        inner = gate * sigmoid(gate) * up
        return self.linear(inner if scale is None else inner * scale[:, None], f"{name}.w2")

    def route(self, x: Array, tokens: Array, name: str) -> tuple[Array, Array]:
        """Chosen experts and their weights, both [T, k]."""
        score = np.sqrt(np.logaddexp(0, self.linear(x, f"{name}.gate")))
        count = self.config["num_experts_per_tok"]
        if f"{name}.gate.tid2eid" in self.weights:
            chosen = self.weights[f"{name}.gate.tid2eid"][tokens]
        else:
            biased = score + self.weight(f"{name}.gate.bias")
            for row in biased:
                self.trace.choice("router", row, count)
            chosen = np.argsort(-biased, axis=-1, kind="stable")[:, :count]
        weight = np.take_along_axis(score, chosen, axis=-1)
        weight = weight / weight.sum(axis=-1, keepdims=True) * self.config["routed_scaling_factor"]
        return chosen, weight

    def experts(self, x: Array, tokens: Array, name: str) -> Array:
        chosen, weight = self.route(x, tokens, name)
        out = self.expert(x, f"{name}.shared_experts")
        for index in np.unique(chosen):
            row, slot = np.nonzero(chosen == index)
            np.add.at(out, row, self.expert(x[row], f"{name}.experts.{index}", weight[row, slot]))
        return out

    # The whole

    def block(self, streams: Array, tokens: Array, name: str, ratio: int) -> Array:
        for kind in ("attn", "ffn"):
            pre, post, comb = self.mix(streams, f"{name}.hc_{kind}")
            x = self.norm(np.einsum("tj,tjd->td", pre, streams), f"{name}.{kind}_norm")
            if kind == "attn":
                out = self.attention(x, f"{name}.attn", ratio)
            else:
                out = self.experts(x, tokens, f"{name}.ffn")
            streams = post[:, :, None] * out[:, None] + np.einsum("tjk,tjd->tkd", comb, streams)
        return streams

    def layers(self, tokens: Sequence[int] | Array) -> Iterator[Array]:
        """Residual streams [T, hc_mult, hidden] after the embedding, then after each trunk layer.

        Item i is what layer i reads: one layer can be judged on exact inputs, before errors grow.
        """
        ids, self.trace = np.asarray(tokens), Trace()
        embedded = self.weight("embed.weight")[ids]
        streams = np.repeat(embedded[:, None], self.config["hc_mult"], axis=1)
        yield streams
        for layer in range(self.config["num_hidden_layers"]):
            streams = self.block(streams, ids, f"layers.{layer}", self.config["compress_ratios"][layer])
            yield streams

    def streams(self, tokens: Sequence[int] | Array) -> Array:
        """Residual streams after the last trunk layer: [T, hc_mult, hidden]."""
        for streams in self.layers(tokens):
            last = streams
        return last

    def head(self, streams: Array, prefix: str = "") -> Array:
        collapsed = self.collapse_for_head(streams, prefix)
        return self.linear(self.norm(collapsed, f"{prefix}norm"), "head")

    def logits(self, tokens: Sequence[int] | Array) -> Array:
        """Row t is the distribution over the token after `tokens[t]`: float64 [T, vocabulary]."""
        return self.head(self.streams(tokens))

    def mtp_logits(self, streams: Array, following: Sequence[int] | Array, index: int = 0) -> Array:
        """Row t is the draft for the token after `following[t]`.

        `streams[t]` are the trunk's streams at position t, `following[t]` is the token at t + 1.
        """
        name, ids = f"mtp.{index}", np.asarray(following)
        embedded = self.norm(self.weight("embed.weight")[ids], f"{name}.enorm")
        token = self.linear(embedded, f"{name}.e_proj")
        hidden = self.linear(self.norm(streams, f"{name}.hnorm"), f"{name}.h_proj")
        out = self.block(token[:, None] + hidden, ids, name, 0)
        return self.head(out, f"{name}.")
