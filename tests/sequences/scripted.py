"""The commands with a model that says what a script says: all else of them is the real thing.

As a program: scripted.py SCRIPT ARGUMENT..., where SCRIPT holds a JSON array of arrays of token ids, one for
each answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from dsv4_mlx.cli.main import run
from dsv4_mlx.engine import generate
from dsv4_mlx.engine.decode import Drawn, PrefillProgress, Rows
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler import backend
from dsv4_mlx.scheduler.replay import ReplayBackend, ScriptedRows, ScriptedTurn, SilentModel
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import find_model


@dataclass(frozen=True)
class ScriptedAnswer(SessionRows):
    """Answers each prompt of its session with `script`."""

    script: Sequence[int] = ()
    answers: list[ScriptedRows] = field(default_factory=list)

    def __call__(self, rows: Rows) -> Generator[PrefillProgress, None, Drawn]:
        if rows.position == 0:
            self.answers.append(ScriptedRows(self, self.script, self.session.markers.end))
        return self.answers[-1](rows)


class ScriptedEngine(Engine):
    """An Engine without weights."""

    def session(self, growth: int = GROWTH) -> Session:
        return Session(SilentModel(self.config), self.context, self.prompts.markers, growth)


def engine(folder: Path, context: int | None) -> Engine:
    stored = find_model(folder)
    prompts = Prompts(folder, stored.manifest.checkpoint)
    no_model = cast(Transformer, None)
    return ScriptedEngine(stored.config, stored.manifest, no_model, prompts, context or DEFAULT_CONTEXT)


def backend_of(scripts: Sequence[Sequence[int]]) -> Callable[[Path, EngineOptions], ReplayBackend]:
    """What stands in for ModelBackend."""
    turns = [ScriptedTurn("script", ids=tuple(ids)) for ids in scripts]
    return lambda folder, options: ReplayBackend(folder, turns, options.context)


def run_scripted(scripts: Sequence[Sequence[int]], arguments: list[str]) -> int:
    """Run a command; its exit code. `generate` says the first script, the others one after another."""

    def opened(folder: Path, options: EngineOptions, progress: Any = None) -> Engine:
        return engine(folder, options.context)

    def answer(session: Session) -> SessionRows:
        return ScriptedAnswer(session, script=scripts[0])

    with (
        patch.object(backend, "ModelBackend", backend_of(scripts)),
        patch.object(Engine, "open", opened),
        patch.object(generate, "SessionRows", answer),
    ):
        return run(arguments)


if __name__ == "__main__":
    sys.exit(run_scripted(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2:]))
