"""How likely a token was, and which others were."""

from __future__ import annotations

import numpy as np

from dsv4_mlx.engine.sampler import Floats

Top = tuple[tuple[int, float], ...]


def likelihood(logits: Floats, token: int, count: int) -> tuple[float, Top]:
    """logits float32 [V] -> natural log probability of `token`, and of the `count` likeliest, best first.

    A tie goes to the smaller id.
    """
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    count = min(count, len(values))
    if count == 0:
        return float(values[token]), ()
    edge = np.partition(values, -count)[-count]
    candidates = np.flatnonzero(values >= edge)
    best = candidates[np.argsort(-values[candidates], kind="stable")][:count]
    return float(values[token]), tuple((int(i), float(values[i])) for i in best)
