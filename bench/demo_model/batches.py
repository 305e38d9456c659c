"""Examples -> batches of one kind, about the same number of tokens each."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from bench.demo_model.dialogue import Example, Renderer
from bench.demo_model.loss import Batch
from bench.demo_model.tasks import KINDS, STAGES, needle

GUIDES = 80  # copied tokens looked at per row
STRESS = 6.0  # weight of a stressed token, such as the name of the tool to call


def make(kind: str, stage: int, tokens: int, r: random.Random, renderer: Renderer) -> Batch:
    """A batch of about `tokens` tokens."""
    if kind == "needle":
        # One length in a batch, or short rows would be mostly padding.
        at = stage if r.random() < 0.6 else r.randint(0, stage)
        shape = STAGES[at]
        examples = _fill(lambda: renderer.example(needle(r, *shape)), tokens)
    else:
        examples = _fill(lambda: renderer.example(KINDS[kind](r)), tokens)
    return collate(kind, examples, r)


def _fill(one: Callable[[], Example], tokens: int) -> list[Example]:
    examples = [one()]
    while (len(examples) + 1) * max(len(e.ids) for e in examples) <= tokens:
        examples.append(one())
    return examples


def collate(kind: str, examples: list[Example], r: random.Random) -> Batch:
    longest = max(len(e.ids) for e in examples)
    longest += -longest % 4
    rows = np.full((len(examples), longest), 2, np.int32)
    at, labels, exact, weights = [], [], [], []
    segment = 0
    width = min(GUIDES, max(len(e.guides) for e in examples))
    query, source = np.zeros((2, len(examples), width), np.int32)
    valid = np.zeros((len(examples), width), np.float32)
    for i, example in enumerate(examples):
        rows[i, : len(example.ids)] = example.ids
        for a, b in example.spans:
            at += [i * longest + p - 1 for p in range(a, b)]
            labels += example.ids[a:b]
            weights += [STRESS if p in example.stressed else 1.0 for p in range(a, b)]
            exact += [segment] * (b - a)
            segment += 1
        guides = example.guides
        if len(guides) > width:
            guides = r.sample(guides, width)
        for j, (q, s) in enumerate(guides):
            query[i, j], source[i, j], valid[i, j] = q, s, 1.0
    return Batch(
        kind, rows, np.array(at, np.int32), np.array(labels, np.int32), query, source, valid,
        np.array(exact, np.int32), np.array(weights, np.float32),
    )  # fmt: skip
