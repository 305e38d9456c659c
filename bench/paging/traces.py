"""Which experts a model asked for, token by token: recorded, drawn at random, or a scan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Trace:
    """`ids` int16 [tokens, layers, each]: the experts of 0 .. experts - 1 that a layer needs for a token."""

    name: str
    experts: int
    ids: Ids

    def layer(self, index: int) -> list[list[int]]:
        """Step by step, each expert named once, in rising order as records lie on disk."""
        return [sorted(set(row)) for row in self.ids[:, index].tolist()]

    @property
    def layers(self) -> int:
        return int(self.ids.shape[1])


def save(trace: Trace, path: Path) -> None:
    np.savez_compressed(path, ids=trace.ids, experts=np.int16(trace.experts))


def load(path: Path) -> Trace:
    with np.load(path) as arrays:
        return Trace(path.stem, int(arrays["experts"]), arrays["ids"])


@dataclass(frozen=True)
class Drawn:
    """How a drawn trace routes: a token's scores are a layer's lasting preference, plus a topic that drifts,
    plus what its neighbours share, plus what is its own; the highest `each` are taken.

    `topic` and `near` are standard deviations beside that of the token's own part, 1; `topic_tokens` and
    `near_tokens` are how long they last. The preference is `lasting` times an exponentially distributed
    number: a few experts are asked for all the time, and none never.
    """

    lasting: float
    topic: float
    topic_tokens: float
    near: float
    near_tokens: float


# Fitted to what was published of this model: docs/paging-predictions.md has the figures side by side.
SKEWED = Drawn(lasting=0.53, topic=0.5, topic_tokens=2000, near=0.35, near_tokens=6)


def drawn(how: Drawn, tokens: int, layers: int, experts: int = 256, each: int = 6, seed: int = 0) -> Trace:
    """A trace with skew and drift. The first token is as any other: topics are in full swing."""
    rng = np.random.default_rng(seed)
    ids = np.empty((tokens, layers, each), np.int16)
    shape = (layers, experts)
    lasting = how.lasting * rng.standard_exponential(shape)
    topic, near = rng.standard_normal(shape), rng.standard_normal(shape)
    slow, fast = np.exp(-1 / how.topic_tokens), np.exp(-1 / how.near_tokens)
    for token in range(tokens):
        topic = slow * topic + np.sqrt(1 - slow**2) * rng.standard_normal(shape)
        near = fast * near + np.sqrt(1 - fast**2) * rng.standard_normal(shape)
        score = lasting + how.topic * topic + how.near * near + rng.standard_normal(shape)
        ids[token] = np.argpartition(-score, each, axis=1)[:, :each]
    return Trace("skewed", experts, ids)


def scan(tokens: int, experts: int = 256, each: int = 6) -> Trace:
    """Every expert in turn, again and again: nothing is so bad for what was used longest ago."""
    ids = (np.arange(tokens * each, dtype=np.int64) % experts).reshape(tokens, 1, each)
    return Trace("scan", experts, ids.astype(np.int16))
