"""dsv4-mlx chat"""

from __future__ import annotations

from typing import Annotated

import typer

from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, SAMPLING, EngineArguments, MaxTokensOption, SeedOption, grouped
from dsv4_mlx.cli.options import (
    THINK,
    ModelArgument,
    SystemOption,
    ThinkBudgetOption,
    ThinkOption,
)
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.machine.support import data_folder, terminal_environment


@grouped
def chat(
    model: ModelArgument,
    *,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this, answer and end.")
    ] = None,
    system: SystemOption = "",
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="NAME", help="Go on with a stored conversation, or the `last`."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines of text only: for screen readers and simple terminals.")
    ] = False,
    think: ThinkOption = THINK,
    think_budget: ThinkBudgetOption = None,
    max_tokens: MaxTokensOption = None,
    sampling: Annotated[SamplingOptions, SAMPLING.only("temperature", "top_p", "top_k", "min_p")],
    seed: SeedOption = None,
    engine: Annotated[EngineArguments, ENGINE],
) -> None:
    """Talk with a model in the terminal; /help lists the commands. A pipe is one question.

    Example: dsv4-mlx chat ~/models/flash
    """
    from dsv4_mlx.cli.console import write_crash_log
    from dsv4_mlx.terminal.attach import is_piped, question
    from dsv4_mlx.terminal.chat import ChatOptions
    from dsv4_mlx.terminal.terminal import talk

    asked = question(prompt) if prompt is not None or is_piped() else None
    folder = model_folder(model)
    from dsv4_mlx.cli.chat_engine import ThreadChatEngine
    from dsv4_mlx.engine.engine import prepare
    from dsv4_mlx.engine.info import check
    from dsv4_mlx.scheduler.backend import ModelBackend

    stored = check(folder)  # a model that is missing or unfinished is said before anything is drawn
    options = engine.with_kernels()
    prepare(options.wire)  # and what it has to warn of

    chat_engine = ThreadChatEngine(
        ModelBackend(folder, options),
        folder.name,
        sampling,
        max_tokens,
        data_folder() / "states",
        think_budget=think_budget,
        recipe=stored.manifest.recipe,
    )
    start = ChatOptions(str(folder), system, think, seed, resume, asked is None, write_crash_log)
    code = talk(chat_engine, data_folder(), start, terminal_environment(), question=asked, plain=plain)
    if code:
        raise typer.Exit(code)
