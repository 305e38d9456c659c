"""The commands with a model that says what a script says: all else of them is the real thing.

As a program: scripted.py SCRIPT ARGUMENT..., where SCRIPT holds a JSON array of arrays of token ids, one for
each answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

from dsv4_mlx.cli.main import run
from dsv4_mlx.engine.decode import PrefillProgress
from dsv4_mlx.engine.engine import Engine, EngineOptions
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.engine.session import Session
from dsv4_mlx.model.state import GROWTH
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.scheduler import backend
from dsv4_mlx.scheduler.replay import ReplayBackend, ScriptedModel, ScriptedTurn
from dsv4_mlx.tokenizer.template import Prompts
from dsv4_mlx.weights.load import find_model


class ScriptedSession(Session):
    """Its model says `script` after any prompt."""

    script: Sequence[int] = ()

    def prefill(self, tokens: Sequence[int]) -> Iterator[PrefillProgress]:
        model = ScriptedModel(self.model.config, self.script, len(tokens), self.markers.end)
        self.model = cast(Transformer, model)
        yield from super().prefill(tokens)


class ScriptedEngine(Engine):
    """An Engine without weights."""

    script: Sequence[int] = ()

    def session(self, growth: int = GROWTH) -> Session:
        session = ScriptedSession(self.model, self.context, self.prompts.markers, growth)
        session.script = self.script
        return session


def engine(folder: Path, script: Sequence[int], context: int | None) -> Engine:
    stored = find_model(folder)
    prompts = Prompts(folder, stored.manifest.checkpoint)
    model = cast(Transformer, ScriptedModel(stored.config, [], 0, prompts.markers.end))
    opened = ScriptedEngine(stored.config, stored.manifest, model, prompts, context or DEFAULT_CONTEXT)
    opened.script = script
    return opened


def run_scripted(scripts: Sequence[Sequence[int]], arguments: list[str]) -> int:
    """Run a command; its exit code. `generate` says the first script, the others one after another."""

    def scripted_backend(folder: Path, options: EngineOptions) -> ReplayBackend:
        turns = [ScriptedTurn("script", ids=tuple(ids)) for ids in scripts]
        return ReplayBackend(folder, turns, options.context)

    def opened(folder: Path, options: EngineOptions, progress: Any = None) -> Engine:
        return engine(folder, scripts[0], options.context)

    with patch.object(Engine, "open", opened), patch.object(backend, "ModelBackend", scripted_backend):
        return run(arguments)


if __name__ == "__main__":
    sys.exit(run_scripted(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2:]))
