"""All steps of the acceptance. What explains other failures comes early, what takes long comes late."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx

from dsv4_mlx.checkpoint.manifest import OFFICIAL
from dsv4_mlx.engine.engine import Engine, fitting
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import DoesNotFit, Dsv4Error, ModelOutputError, Progress, UsageError
from dsv4_mlx.evaluation import logprobs, long_run
from dsv4_mlx.evaluation.file_checks import files, numbers
from dsv4_mlx.evaluation.layers import layers, sample
from dsv4_mlx.evaluation.long_run import TOKENS, NumericsName, cuts, long_answer
from dsv4_mlx.evaluation.needles import LENGTHS, name_of, needles
from dsv4_mlx.evaluation.report import Acceptance, AcceptanceStep, Bar, made_with
from dsv4_mlx.ops.selftest.verdicts import Verdict
from dsv4_mlx.ops.table import Ops
from dsv4_mlx.weights.load import find_model
from dsv4_mlx.weights.stored import StoredModel

LEFT_OUT = "left out by --quick"
EXACT = 4  # the long answer in exact numerics, which few use, is so many times shorter


@dataclass(frozen=True)
class AcceptanceOptions:
    """What to ask. `quick`: a layer of each kind, needles in the shortest text only, and no long answer.

    `lengths` of the texts with needles and `tokens` of the long answer: others than these are for tests.
    `against`: the official checkpoint that a converted folder was made from. `logprobs`: see logprobs.py.
    """

    quick: bool = False
    against: Path | None = None
    logprobs: Path | None = None
    engine: EngineOptions = field(default_factory=EngineOptions)
    lengths: tuple[int, ...] = LENGTHS
    tokens: int = TOKENS


@dataclass(frozen=True)
class AcceptanceTools:
    """The ops to compute with, and what `dsv4_mlx.ops.selftest` found of each kernel on the way to them."""

    ops: Ops
    verdicts: Sequence[Verdict] = ()


class _Watched:
    """A bar that remembers how far it got."""

    def __init__(self, bar: Bar) -> None:
        self._bar, self.doing = bar, ""

    @contextmanager
    def __call__(self, title: str, unit: str) -> Iterator[Progress]:
        self.doing = title
        with self._bar(title, unit) as show:

            def reached(done: int, total: int) -> None:
                self.doing = f"{title}: {done:,} of {total:,} {unit}"
                show(done, total)

            yield reached


def accept(
    folder: Path,
    tools: AcceptanceTools,
    wanted: AcceptanceOptions,
    bar: Bar,
    keep: Callable[[Acceptance], None],
) -> Acceptance:
    """Ask everything that is wanted. `bar(title, unit)` shows progress.

    `keep` is called after every step with what is known by then, and once more when something stops the work:
    Ctrl-C, or an error. A damaged model raises nothing: what is wrong is in the steps. Raises InputError for
    a folder that is no model, DoesNotFit where nothing of it can run.
    """
    stored = find_model(folder)
    if wanted.against is not None and stored.manifest.recipe == OFFICIAL:
        raise UsageError(
            "--against is for a converted folder, and this is an official one", next="leave it out"
        )
    with suppress(DoesNotFit):  # a wrong option is said at once; what doesn't fit still has files and layers
        fitting(stored.config, stored.manifest, None, wanted.engine.expert_memory)
    known = () if wanted.logprobs is None else logprobs.read(wanted.logprobs, stored.config.vocab_size)
    watched = _Watched(bar)
    found = Acceptance(
        (), made_with(stored, tools.ops.name, wanted.engine.expert_memory), wanted.quick, "not begun"
    )
    begin = time.perf_counter()
    try:
        for step in _steps(stored, tools, wanted, known, watched):
            now = time.perf_counter()
            step = replace(step, seconds=round(now - begin, 2))
            begin = now
            found = replace(found, steps=(*found.steps, step), stopped="not finished")
            keep(found)
    except BaseException as error:
        keep(replace(found, stopped=f"{_why(error, folder)}, while at: {watched.doing or 'the beginning'}"))
        raise
    found = replace(found, stopped="")
    keep(found)
    return found


def _why(error: BaseException, folder: Path) -> str:
    """In words that hold no path."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, SystemExit):
        return "terminated"
    if isinstance(error, Dsv4Error):
        return error.message.replace(str(folder), "the model")
    return type(error).__name__


def _steps(
    stored: StoredModel,
    tools: AcceptanceTools,
    wanted: AcceptanceOptions,
    known: Sequence[logprobs.Known],
    bar: Bar,
) -> Iterator[AcceptanceStep]:
    first = files(stored.folder, stored.manifest, wanted.against, bar)
    yield first
    yield numbers(stored.config)
    yield kernels(tools.verdicts)
    if first.ok is False:
        return  # what the layers would say follows from it
    yield layers(stored, tools.ops, sample(stored.config) if wanted.quick else None, bar)
    engine = _open(stored, "exact", tools, wanted, bar)
    yield _sound("cuts, exact", lambda: cuts(engine, "exact"))
    del engine
    engine = _open(stored, "official", tools, wanted, bar)
    yield _sound("cuts, official", lambda: cuts(engine, "official"))
    if known:
        yield _sound(logprobs.NAME, lambda: logprobs.compared(engine, known, bar))
    else:
        yield AcceptanceStep(logprobs.NAME, None, (logprobs.NOT_ASKED,))
    for length in wanted.lengths:
        if wanted.quick and length > LENGTHS[0]:
            yield AcceptanceStep(name_of(length), None, (LEFT_OUT,))
        else:
            yield _sound(name_of(length), lambda length=length: needles(engine, length, bar))  # type: ignore[misc]
    official, exact = long_run.name_of("official"), long_run.name_of("exact")
    if wanted.quick:
        yield AcceptanceStep(official, None, (LEFT_OUT,))
        yield AcceptanceStep(exact, None, (LEFT_OUT,))
        return
    yield _sound(official, lambda: long_answer(engine, wanted.tokens, bar, "official"))
    del engine
    engine = _open(stored, "exact", tools, wanted, bar)
    yield _sound(exact, lambda: long_answer(engine, wanted.tokens // EXACT, bar, "exact"))


def _sound(name: str, step: Callable[[], AcceptanceStep]) -> AcceptanceStep:
    """The step, which has found something if logits are not numbers."""
    try:
        return step()
    except ModelOutputError as error:
        return AcceptanceStep(name, False, (error.message,))


def _open(
    stored: StoredModel,
    numerics: NumericsName,
    tools: AcceptanceTools,
    wanted: AcceptanceOptions,
    bar: Bar,
) -> Engine:
    """The caller must have let go of the engine before: two of them don't fit."""
    gc.collect()  # a paged model holds itself in a circle
    mx.clear_cache()
    options = replace(wanted.engine, numerics=numerics, ops=tools.ops)
    with bar("loading", "bytes") as show:
        return Engine.open(stored.folder, options, show)


def kernels(verdicts: Sequence[Verdict]) -> AcceptanceStep:
    """What the check of every kernel found on this machine."""
    if not verdicts:
        return AcceptanceStep(
            "kernels", None, ("no Metal here, or --ops reference: the references were used",)
        )
    found = tuple(f"{v.kernel} {v.sentence()}" for v in verdicts if not v.works)
    return AcceptanceStep("kernels", not found, found, {"checked": len(verdicts)})
