"""Chooses a token on the device: logits -> an id that may not be computed yet.

    logits -> bias -> penalties -> mask -> what top_k, top_p and min_p keep -> argmax(logits + noise)

The noise is the temperature times a Gumbel variate, in float64 from (seed, position), made on the host: an
argmax of logits and such noise draws as a softmax does. Nothing else decides, so what other requests do can't
change a draw. Beyond one subtraction and one product, what is kept is found in integers: no sum or function
is left whose last bit differs between devices, and any of them chooses the same token.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.constraint import Mask
from dsv4_mlx.engine.engine_options import SamplingOptions

Floats = npt.NDArray[np.float32]
BINS = 1 << 16  # a token's bin: how far it is below the largest, in FINE-ths of the temperature
FINE = 1024
ONE = 1 << 40  # the weight of bin 0; that of bin b is floor(ONE * exp(-b / FINE))
SHARE = 30  # bits of top_p
STEEP = float(np.finfo(np.float32).max)


class Sampler:
    """Draws by one set of options. `prompt`: how many leading tokens are not the model's own."""

    def __init__(self, options: SamplingOptions, prompt: int = 0) -> None:
        self.options = options
        self._all, self._answer = _Counts(0), _Counts(prompt)
        self._bias: mx.array | None = None
        self._made: tuple[int, mx.array] | None = None  # noise of one position
        self._size = 0

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken, and no noise is needed."""
        return self.options.temperature == 0 or self.options.top_k == 1

    def __call__(self, logits: mx.array, tokens: Sequence[int], mask: Mask | None = None) -> mx.array:
        """logits float32 [V] after `tokens` -> int32 [], the id that follows; not evaluated.

        mask bool [V]: what may follow.
        """
        self._size = logits.size
        logits = self._adjusted(logits, tokens)
        if mask is not None:
            logits = mx.where(mx.array(mask), logits, -mx.inf)
        if self.greedy:
            return mx.argmax(logits).astype(mx.int32)
        drawn = logits + self._noise(len(tokens))
        keep = kept(logits, self.options)
        if keep is not None:
            drawn = mx.where(keep, drawn, -mx.inf)
        return mx.argmax(drawn).astype(mx.int32)

    def prepare(self, position: int) -> None:
        """Make the noise of a token at `position` now, while the device works: 2 ms for a full vocabulary."""
        if self._size and not self.greedy:
            self._made = position, self._noise(position)

    def _noise(self, position: int) -> mx.array:
        if self._made is None or self._made[0] != position:
            self._made = position, mx.array(noise(self.options, position, self._size))
        return self._made[1]

    def _adjusted(self, logits: mx.array, tokens: Sequence[int]) -> mx.array:
        o = self.options
        if o.logit_bias:
            if self._bias is None:
                bias = np.zeros(self._size, np.float32)
                bias[list(o.logit_bias)] = list(o.logit_bias.values())
                self._bias = mx.array(bias)
            logits = logits + self._bias
        if o.repetition_penalty != 1.0:
            seen = mx.array(self._all.of(tokens, self._size) > 0)
            less = mx.where(logits > 0, logits / o.repetition_penalty, logits * o.repetition_penalty)
            logits = mx.where(seen, less, logits)
        if (o.presence_penalty, o.frequency_penalty) != (0.0, 0.0):
            # Products of the host: on a device one that feeds a sum may be rounded together with it.
            counts = self._answer.of(tokens, self._size)
            logits = logits - mx.array(np.float32(o.presence_penalty) * (counts > 0))
            logits = logits - mx.array(np.float32(o.frequency_penalty) * counts)
        return logits


def noise(options: SamplingOptions, position: int, size: int) -> Floats:
    """float32 [size]: what is added to the logits before the token at `position` is drawn."""
    uniform = np.random.Generator(np.random.Philox(key=[options.seed, position]))
    values = uniform.standard_exponential(size)
    np.maximum(values, np.finfo(np.float64).tiny, out=values)
    np.log(values, out=values)
    values *= -options.temperature
    return values.astype(np.float32)


def kept(logits: mx.array, options: SamplingOptions) -> mx.array | None:
    """float32 [V] -> bool [V], the tokens that top_k, top_p and min_p leave; None: all.

    In order of bin and then of id: top_k keeps the first, top_p those before which less than its share of the
    weight lies, of what top_k has kept. min_p keeps the bins that weigh at least its share of bin 0.
    """
    sorts = options.top_k > 0 or options.top_p < 1
    if not (sorts or options.min_p > 0):
        return None
    scale = min(FINE / options.temperature, STEEP)
    bins = mx.minimum((mx.max(logits) - logits) * scale, float(BINS - 1)).astype(mx.int64)
    keep = None
    if sorts:
        # Bin and id in one key: none is equal to another, so the order does not hang on a stable sort.
        keys = (bins << 32) | mx.arange(logits.size, dtype=mx.int64)
        first = mx.sort(keys)
        if options.top_k > 0:
            first = first[: options.top_k]
        last = first[-1] if options.top_p == 1 else first[_nucleus(first >> 32, options.top_p) - 1]
        keep = keys <= last
    if options.min_p > 0:
        likely = bins < int(np.count_nonzero(_weights() >= options.min_p * ONE))
        keep = likely if keep is None else keep & likely
    return keep


def _nucleus(bins: mx.array, top_p: float) -> mx.array:
    """int64 [K], growing -> int32 [], how many of them the share of `top_p` takes; at least 1."""
    weights = mx.array(_weights())[bins]
    sums = mx.cumsum(weights)
    part, total = max(1, round(top_p * 2**SHARE)), sums[-1]
    # total * part / 2^SHARE, without a product of more than 63 bits
    share = (total >> SHARE) * part + (((total & (2**SHARE - 1)) * part) >> SHARE)
    return mx.sum(sums - weights < share)


@cache
def _weights() -> npt.NDArray[np.int64]:
    weights: npt.NDArray[np.int64] = np.floor(ONE * np.exp(-np.arange(BINS) / FINE)).astype(np.int64)
    return weights


class _Counts:
    """How often each token occurs after the first `skip`; a sequence that only grew costs its new tokens."""

    def __init__(self, skip: int) -> None:
        self.skip = skip
        self._tokens: list[int] = []
        self._counts: Floats = np.zeros(0, np.float32)

    def of(self, tokens: Sequence[int], vocabulary: int) -> Floats:
        """float32 [vocabulary]; not to be changed."""
        counted = len(self._tokens)
        if len(self._counts) != vocabulary or list(tokens[:counted]) != self._tokens:
            self._tokens, counted = [], 0
            self._counts = np.zeros(vocabulary, np.float32)
        new = list(tokens[counted:])
        np.add.at(self._counts, np.asarray(new[max(0, self.skip - counted) :], np.int64), 1)
        self._tokens += new
        return self._counts
