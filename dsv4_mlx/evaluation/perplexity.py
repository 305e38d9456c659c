"""A text through a model, chunk by chunk, and through others; the distance between what they predict."""

from __future__ import annotations

import gc
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.chunking import chunk_ends
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.language_model import check_logits
from dsv4_mlx.errors import DoesNotFit, InputError, MachineError, Progress
from dsv4_mlx.evaluation.intervals import (
    Bucket,
    Distance,
    Floats,
    distance,
    divergence,
    log_softmax,
    perplexities,
)
from dsv4_mlx.machine.limits import description
from dsv4_mlx.machine.units import size
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import find_model

PIECE = 32  # rows whose probabilities are in memory as float64 at once: 33 MB each at full size
Rows = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Evaluation:
    """`floor`: the distance between the model's own two numerics, official and exact: what two ways of adding
    the same numbers up make of it. A `distance` to a reference near it says nothing about the weights.
    `buckets` and `reference_buckets` are the perplexities of the two models.
    """

    tokens: int
    numerics: str
    floor: Distance
    distance: Distance | None
    buckets: tuple[Bucket, ...]
    reference_buckets: tuple[Bucket, ...]
    machine: str

    @property
    def beyond_floor(self) -> bool | None:
        """Whether the distance to the reference is surely more than the floor; None without a reference."""
        return None if self.distance is None else self.distance.kl.low > self.floor.kl.high

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = _finite(asdict(self) | {"beyond_floor": self.beyond_floor})
        return found


def _finite(value: Any) -> Any:
    """The same with None for infinities, which JSON has not: the ends of an interval of nothing known."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class _Pass:
    """One model over the whole text. `losses`: of tokens 1 .. T - 1; the others against the first pass."""

    losses: Floats
    kl: Floats
    agree: Bools

    def distance(self) -> Distance:
        return distance(self.kl, self.agree)


class _Kept:
    """The first pass's logits in a file: float32 [T, V], 4 bytes each."""

    def __init__(self, file: IO[bytes], folder: Path, tokens: int, vocabulary: int) -> None:
        self._file, self._folder, self._width = file, folder, vocabulary
        self.bytes = 4 * tokens * vocabulary
        free = shutil.disk_usage(folder).free
        if free < self.bytes:
            raise self._full(f"{size(self.bytes - free)} are missing")

    def write(self, rows: Rows) -> None:
        try:
            self._file.write(np.ascontiguousarray(rows).data)
        except OSError as error:
            raise self._full(error.strerror or str(error)) from None

    def read(self, start: int, count: int) -> Rows:
        self._file.seek(4 * self._width * start)
        found = np.empty((count, self._width), np.float32)
        self._file.readinto(found.data)  # type: ignore[attr-defined]
        return found

    def _full(self, why: str) -> MachineError:
        return MachineError(
            f"the temporary file of {size(self.bytes)} can't be written: {why}",
            where=self._folder,
            next="use fewer --tokens, or set TMPDIR to a folder on a disk with room",
        )


def evaluate(
    folder: Path, text: str, count: int, options: EngineOptions, reference: Path | None, progress: Progress
) -> Evaluation:
    """The first `count` tokens of `text`. One model is in memory at a time: the logits of the first wait in a
    temporary file of 4 bytes per token and vocabulary entry.

    Raises InputError for a text of fewer than two tokens, or models with other tokenizers; DoesNotFit for
    more tokens than a model or the machine can hold; MachineError where the file doesn't fit.
    """
    tokens, config = _tokens(folder, text, count)
    if reference is not None:
        _same(tokens, config, *_tokens(reference, text, count), reference)
    options = replace(options, context=len(tokens))
    other = replace(options, numerics="exact" if options.numerics == "official" else "official")
    passes = [(folder, options), (folder, other)] + ([(reference, options)] if reference else [])
    found: list[_Pass] = []
    with tempfile.TemporaryDirectory(prefix="dsv4-mlx-eval-") as scratch, tempfile.TemporaryFile(
        dir=scratch
    ) as file:  # fmt: skip
        kept = _Kept(file, Path(scratch), len(tokens), config.vocab_size)
        for number, (place, how) in enumerate(passes):
            # KL is from what is nearer to the truth: exact numerics, the reference model.
            forward = number > 0 and not (number == 1 and options.numerics == "exact")

            def reached(done: int, number: int = number) -> None:
                progress(number * len(tokens) + done, len(passes) * len(tokens))

            found.append(_pass(place, how, tokens, kept, number == 0, forward, reached))
    return Evaluation(
        tokens=len(tokens),
        numerics=options.numerics,
        floor=found[1].distance(),
        distance=found[2].distance() if reference is not None else None,
        buckets=tuple(perplexities(found[0].losses)),
        reference_buckets=tuple(perplexities(found[2].losses)) if reference is not None else (),
        machine=description(),
    )


def _tokens(folder: Path, text: str, count: int) -> tuple[list[int], ModelConfig]:
    """Begin of sentence, which is token 0, and the text's own tokens; nothing of the weights is read."""
    config = find_model(folder).config
    ids = [0, *Prompts(folder, config.checkpoint).tokenizer.encode(text)][:count]
    if len(ids) < 3:
        raise InputError(
            f"the text has {len(ids) - 1} tokens, expected 2 at least", next="give a longer text"
        )
    if max(ids) >= config.vocab_size:
        raise InputError(
            f"tokenizer.json gives the token {max(ids)}, by config.json ids are below {config.vocab_size}",
            where=folder,
            next="use the tokenizer.json of the official checkpoint",
        )
    if len(ids) > config.max_context:
        raise DoesNotFit(
            f"{len(ids):,} tokens are more than the model's context of {config.max_context:,}",
            next=f"use --tokens {config.max_context} or fewer",
        )
    return ids, config


def _same(
    tokens: list[int], config: ModelConfig, others: list[int], other: ModelConfig, reference: Path
) -> None:
    if tokens != others or config.vocab_size != other.vocab_size:
        raise InputError(
            "the two models have different tokenizers: their distributions can't be compared",
            where=reference,
        )


def _pass(
    folder: Path, options: EngineOptions, tokens: Sequence[int], kept: _Kept, first: bool, forward: bool,
    reached: Callable[[int], None],
) -> _Pass:  # fmt: skip
    """Run one model. The first pass fills `kept`, others are compared with it: KL from them if `forward`."""
    gc.collect()  # a paged model holds itself in a circle
    mx.clear_cache()
    try:
        engine = Engine.open(folder, options)
    except DoesNotFit as error:
        raise DoesNotFit(error.message, where=error.where, next="use fewer --tokens") from None
    losses, kl, agree = [], [np.zeros(0)], [np.zeros(0, bool)]
    for start, rows in _scored(engine, tokens):
        if first:
            kept.write(rows)
        for at in range(0, len(rows), PIECE):
            here = start + at
            log = log_softmax(rows[at : at + PIECE])
            given = tokens[here + 1 : here + 1 + len(log)]
            losses.append(-log[np.arange(len(given)), given])
            if not first:
                before = log_softmax(kept.read(here, len(log)))
                a, b = divergence(log, before) if forward else divergence(before, log)
                kl.append(a)
                agree.append(b)
        reached(start + len(rows))
    return _Pass(np.concatenate(losses), np.concatenate(kl), np.concatenate(agree))


def _scored(engine: Engine, tokens: Sequence[int]) -> Iterator[tuple[int, Rows]]:
    """(position of the first row, logits after each token), cut where `generate` cuts."""
    state, start = engine.model.new_state(), 0
    for end in [*(c for c in chunk_ends(tokens, engine.prompts.markers) if c < len(tokens)), len(tokens)]:
        logits = engine.model(mx.array([list(tokens[start:end])], mx.int32), state)
        mx.eval(logits, *state.arrays())
        rows = np.array(logits[0])
        check_logits(rows, end - 1)
        yield start, rows
        start = end
