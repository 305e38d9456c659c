"""The sampler's definition in NumPy, sorted and summed the plain way: what any device must choose."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.engine_options import SamplingOptions

Floats = npt.NDArray[np.float32]


def chosen(
    row: Floats,
    options: SamplingOptions,
    tokens: Sequence[int] = (),
    prompt: int = 0,
    mask: npt.NDArray[np.bool_] | None = None,
) -> int:
    """float32 [V] after `tokens`, the first `prompt` of them not the model's own -> the next."""
    row = adjusted(row, options, tokens, prompt)
    if mask is not None:
        row = np.where(mask, row, np.float32(-np.inf))
    if options.temperature == 0 or options.top_k == 1:
        return int(row.argmax())
    key = [options.seed, len(tokens)]
    exponential = np.random.Generator(np.random.Philox(key=key)).standard_exponential(len(row))
    noise = (-np.log(exponential) * options.temperature).astype(np.float32)
    return int(np.where(kept(row, options), row + noise, np.float32(-np.inf)).argmax())


def adjusted(row: Floats, options: SamplingOptions, tokens: Sequence[int], prompt: int) -> Floats:
    """Bias, then penalties."""
    row = row.copy()
    for token, bias in options.logit_bias.items():
        row[token] += np.float32(bias)
    factor = np.float32(options.repetition_penalty)
    for token in set(tokens):
        row[token] = row[token] / factor if row[token] > 0 else row[token] * factor
    answer = np.bincount(np.asarray(tokens[prompt:], np.int64), minlength=len(row)).astype(np.float32)
    row -= np.float32(options.presence_penalty) * (answer > 0).astype(np.float32)
    row -= np.float32(options.frequency_penalty) * answer
    return row


def kept(row: Floats, options: SamplingOptions) -> npt.NDArray[np.bool_]:
    """bool [V]: what the cuts leave."""
    with np.errstate(over="ignore"):
        scale = np.float32(min(1024 / options.temperature, float(np.finfo(np.float32).max)))
        bins = np.minimum(np.floor((row.max() - row) * scale), 65_535).astype(np.int64)
    weights = np.floor(2.0**40 * np.exp(-np.arange(65_536) / 1024)).astype(np.int64)[bins]
    order = np.argsort(bins, kind="stable")[: options.top_k or None]
    if options.top_p < 1:
        sums = np.cumsum(weights[order])
        share = int(sums[-1]) * max(1, round(options.top_p * 2**30)) >> 30
        order = order[sums - weights[order] < share]
    keep = np.zeros(len(row), np.bool_)
    keep[order[weights[order] >= options.min_p * 2**40]] = True
    return keep
