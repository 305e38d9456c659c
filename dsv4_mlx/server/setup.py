"""A model's folder -> an application for it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from dsv4_mlx.engine.engine import fitting
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.scheduler.turn_cache import Turns
from dsv4_mlx.server.app import App
from dsv4_mlx.server.metrics import Record
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols.request import Facts
from dsv4_mlx.server.service import Service
from dsv4_mlx.server.streaming import Counter
from dsv4_mlx.server.translate import Intake
from dsv4_mlx.tokenizer.markers import Spelling
from dsv4_mlx.tokenizer.template import LEVELS, Prompts
from dsv4_mlx.weights.load import find_model


def model_facts(
    folder: Path, name: str, options: ServerOptions, context: int | None, expert_memory: str | None
) -> Facts:
    """What is known of a model before it is loaded. Raises UsageError, InputError, DoesNotFit.

    `expert_memory` None: its weights won't be loaded.
    """
    stored = find_model(folder)
    config = stored.config
    if expert_memory is not None:
        context, _ = fitting(config, stored.manifest, context, expert_memory)
    elif context is None:
        context = DEFAULT_CONTEXT
    levels = LEVELS[stored.manifest.checkpoint]
    return Facts(options, name, levels, config.vocab_size, context, config.max_context)


def make_app(
    folder: Path, facts: Facts, worker: Service, threads: Executor, crash: Callable[[str], str]
) -> App:
    """The application; reads tokenizer and template, which takes a second at full size. Raises InputError."""
    prompts = Prompts(folder, find_model(folder).manifest.checkpoint)
    grammars = Grammars(folder, facts.vocabulary, prompts.markers)
    intake = Intake(facts, Spelling(folder), grammars, Turns(prompts))
    return App(Counter(intake, worker, threads, facts.options.limits, Record(), crash))
