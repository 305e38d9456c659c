"""Stored log-probabilities of another implementation, such as the vendor's own: read, checked, compared.

    {"source": "who measured them, how, with which checkpoint",
     "prompts": [{"ids": [0, 42, ...], "rows": [{"position": 17, "token": 311, "logprob": -0.25}, ...]}, ...]}

A row: after the first `position` tokens of `ids`, `token` was the likeliest next one, with that natural
logarithm of its probability.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.language_model import Logits
from dsv4_mlx.errors import InputError
from dsv4_mlx.evaluation.report import AcceptanceStep, Bar

LARGEST = 64 << 20  # bytes of a file
AGREE = 0.9  # share of rows with the same likeliest token, at least
OFF = 0.25  # mean absolute difference of their log-probabilities in nats, at most
NAME = "log-probabilities"
NOT_ASKED = "no set with a clean licence is stored; --logprobs FILE compares with one of yours"


@dataclass(frozen=True)
class Row:
    """After `position` tokens the likeliest one is `token`, with the natural log-probability `logprob`."""

    position: int
    token: int
    logprob: float


@dataclass(frozen=True)
class Known:
    """A sequence and what is known of it, in order of position."""

    ids: tuple[int, ...]
    rows: tuple[Row, ...]


def read(path: Path, vocabulary: int) -> list[Known]:
    """The prompts of a file. Raises InputError that names the first thing that is wrong."""
    if path.exists() and not path.is_file():
        raise InputError("not a file of log-probabilities but something else", where=path)
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(
                f"the file has {path.stat().st_size} bytes, expected {LARGEST} at most", where=path
            )
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"the file can't be read: {error.strerror}", where=path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"the file is not JSON: {error}", where=path, next=_HELP) from None
    try:
        if not isinstance(raw, dict) or not isinstance(raw.get("prompts"), list) or not raw["prompts"]:
            raise ValueError('expected an object with "prompts", a list that is not empty')
        return [_known(entry, number, vocabulary) for number, entry in enumerate(raw["prompts"])]
    except ValueError as error:
        raise InputError(f"not a file of log-probabilities: {error}", where=path, next=_HELP) from None


_HELP = "docs/acceptance.md shows what such a file holds"


def _known(entry: Any, number: int, vocabulary: int) -> Known:
    where = f"prompt {number}"
    ids, rows = (entry.get("ids"), entry.get("rows")) if isinstance(entry, dict) else (None, None)
    if not isinstance(ids, list) or not isinstance(rows, list) or not ids or not rows:
        raise ValueError(f'{where}: expected "ids" and "rows", lists that are not empty')
    wrong = next((token for token in ids if not _whole(token, 0, vocabulary - 1)), None)
    if wrong is not None:
        raise ValueError(f"{where}: {repr(wrong)[:40]} is not a token id from 0 to {vocabulary - 1}")
    found = [_row(row, f"{where}, row {i}", len(ids), vocabulary) for i, row in enumerate(rows)]
    if len({row.position for row in found}) != len(found):
        raise ValueError(f"{where}: a position is there twice")
    return Known(tuple(ids), tuple(sorted(found, key=lambda row: row.position)))


def _row(raw: Any, where: str, count: int, vocabulary: int) -> Row:
    if not isinstance(raw, dict) or raw.keys() != {"position", "token", "logprob"}:
        raise ValueError(f'{where}: expected "position", "token" and "logprob", and nothing else')
    if not _whole(raw["position"], 1, count):
        raise ValueError(f"{where}: the position is {repr(raw['position'])[:40]}, expected 1 to {count}")
    if not _whole(raw["token"], 0, vocabulary - 1):
        raise ValueError(
            f"{where}: the token is {repr(raw['token'])[:40]}, expected an id from 0 to {vocabulary - 1}"
        )
    value = raw["logprob"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not (-1e4 <= value <= 0):  # NaN fails both comparisons
        raise ValueError(f"{where}: the logprob is {repr(value)[:40]}, expected a number from -10000 to 0")
    return Row(raw["position"], raw["token"], float(value))


def _whole(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def compared(engine: Engine, known: Sequence[Known], bar: Bar) -> AcceptanceStep:
    """How often the likeliest token is the stored one, and how far its log-probability is from the stored."""
    longest = max(len(one.ids) for one in known)
    if longest > engine.context:
        why = f"a prompt has {longest:,} tokens, the context holds {engine.context:,}"
        return AcceptanceStep(NAME, None, (why,))
    agree, off = [], []
    with bar(NAME, "prompts") as show:
        for done, one in enumerate(known):
            session = engine.session()
            for row in one.rows:
                logits = session.sync(one.ids[: row.position])
                agree.append(int(logits.argmax()) == row.token)
                off.append(abs(_logprob(logits, row.token) - row.logprob))
            show(done + 1, len(known))
    share, mean = float(np.mean(agree)), float(np.mean(off))
    found = []
    if share < AGREE:
        found.append(
            f"the likeliest token is the stored one at {share:.1%} of {len(off)} positions, "
            f"expected {AGREE:.0%} at least"
        )
    if not mean <= OFF:
        found.append(f"log-probabilities differ by {mean:.3f} on average, expected {OFF:g} at most")
    figures = {"positions": len(off), "same_best_token": share, "mean_difference": mean, "largest": max(off)}
    told = (
        f"{len(off):,} positions, {share:.1%} with the same likeliest token, {mean:.3g} nats apart on average"
    )
    return AcceptanceStep(NAME, not found, tuple(found), figures, (told,))


def _logprob(logits: Logits, token: int) -> float:
    values = logits.astype(np.float64) - float(logits.max())
    return float(values[token]) - math.log(float(np.exp(values).sum()))
