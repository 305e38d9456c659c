"""dsv4-mlx generate"""

from __future__ import annotations

import secrets
import sys
from typing import Annotated

import typer

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.options import (
    ContextOption,
    MaxTokensOption,
    ModelArgument,
    NumericsMode,
    NumericsOption,
    SeedOption,
    TemperatureOption,
    ThinkMode,
    ThinkOption,
    TopPOption,
    model_folder,
)


def generate(
    model: ModelArgument,
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask.")],
    think: ThinkOption = ThinkMode.ON,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = None,
    context: ContextOption = None,
    numerics: NumericsOption = NumericsMode.OFFICIAL,
) -> None:
    """Answer one question: thinking on stderr, the answer on stdout, both as they come.

    Example: dsv4-mlx generate ~/models/flash -p "Why is the sky blue?" --think off
    """
    from dsv4_mlx.engine import Engine, EngineOptions, SamplingOptions
    from dsv4_mlx.engine.generate import answer

    seed = secrets.randbits(32) if seed is None else seed
    sampling = SamplingOptions(temperature=temperature, top_p=top_p, seed=seed)
    options = EngineOptions(context=context, numerics=numerics.value)
    with progress("loading") as loading:
        engine = Engine.open(model_folder(model), options, loading)
    session = engine.session()
    pieces = answer(engine, session, prompt, think.value, sampling, max_tokens=max_tokens)
    thinking = False
    for piece in pieces:
        if piece.kind == "answer" and thinking:
            print(file=sys.stderr, flush=True)
        thinking = piece.kind == "thinking"
        print(piece.text, end="", flush=True, file=sys.stderr if thinking else sys.stdout)
    print(flush=True, file=sys.stderr if thinking else sys.stdout)
