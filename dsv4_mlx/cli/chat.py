"""dsv4-mlx chat"""

from __future__ import annotations

from typing import Annotated

import typer

from dsv4_mlx.cli.models import model_folder
from dsv4_mlx.cli.ops_option import chosen
from dsv4_mlx.cli.options import (
    ContextOption,
    ExpertMemoryOption,
    ExpertThreadsOption,
    MaxTokensOption,
    ModelArgument,
    NumericsMode,
    NumericsOption,
    OpsMode,
    OpsOption,
    ThinkMode,
    ThinkOption,
    VerifyReadsOption,
    WireMode,
    WireOption,
    data_folder,
    terminal_environment,
)
from dsv4_mlx.cli.sampling import MinPOption, SeedOption, TemperatureOption, TopKOption, TopPOption


def chat(
    model: ModelArgument = "",
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Ask this, answer and end.")
    ] = None,
    system: Annotated[str, typer.Option("--system", metavar="TEXT", help="The system text.")] = "",
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="NAME", help="Go on with a stored conversation, or the `last`."),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines of text only: for screen readers and simple terminals.")
    ] = False,
    think: ThinkOption = ThinkMode.ON,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    seed: SeedOption = None,
    context: ContextOption = None,
    numerics: NumericsOption = NumericsMode.OFFICIAL,
    ops: OpsOption = OpsMode.AUTO,
    expert_memory: ExpertMemoryOption = "auto",
    expert_threads: ExpertThreadsOption = None,
    verify_reads: VerifyReadsOption = False,
    wire: WireOption = WireMode.AUTO,
) -> None:
    """Talk with a model in the terminal; /help lists the commands. A pipe is one question.

    Example: dsv4-mlx chat ~/models/flash
    """
    from dsv4_mlx.cli.console import write_crash_log
    from dsv4_mlx.cli.stdin import is_piped, question
    from dsv4_mlx.terminal.chat import ChatOptions
    from dsv4_mlx.terminal.terminal import talk

    asked = question(prompt) if prompt is not None or is_piped() else None
    folder = model_folder(model)
    from dsv4_mlx.cli.chat_engine import ThreadChatEngine
    from dsv4_mlx.engine.engine import EngineOptions
    from dsv4_mlx.engine.info import check
    from dsv4_mlx.engine.sampler import SamplingOptions
    from dsv4_mlx.engine.wiring import prepare
    from dsv4_mlx.scheduler.backend import ModelBackend

    check(folder)  # a model that is missing or unfinished is said before anything is drawn
    prepare(wire.value)  # and what it has to warn of

    opened = EngineOptions(
        context=context,
        numerics=numerics.value,
        ops=chosen(ops),
        expert_memory=expert_memory,
        expert_threads=expert_threads,
        verify_reads=verify_reads,
        wire=wire.value,
    )
    engine = ThreadChatEngine(
        ModelBackend(folder, opened),
        folder.name,
        SamplingOptions(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p),
        max_tokens,
        data_folder() / "states",
    )
    options = ChatOptions(str(folder), system, think.value, seed, resume, write_crash_log)
    code = talk(engine, data_folder(), options, terminal_environment(), question=asked, plain=plain)
    if code:
        raise typer.Exit(code)
