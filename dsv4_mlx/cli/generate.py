"""dsv4-mlx generate"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.answer_format import JsonSchemaOption, RegexOption, form, rule_of
from dsv4_mlx.cli.console import progress, tell
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
)
from dsv4_mlx.cli.sampling import (
    FrequencyOption,
    LogitBiasOption,
    MinPOption,
    PresenceOption,
    RepetitionOption,
    SeedOption,
    StopIdOption,
    StopOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    logit_bias,
)
from dsv4_mlx.errors import UsageError

if TYPE_CHECKING:
    from dsv4_mlx.tokenizer.output_parser import Piece

PromptOption = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask. Piped text goes before it."),
]
PlainOption = Annotated[bool, typer.Option("--plain", help="No bar that moves: lines of text only.")]
CompleteOption = Annotated[
    bool,
    typer.Option("--complete", help="Go on with the text as it is, no question and answer: for base models."),
]


def generate(
    call: typer.Context,
    model: ModelArgument,
    prompt: PromptOption = None,
    complete: CompleteOption = False,
    think: ThinkOption = ThinkMode.ON,
    max_tokens: MaxTokensOption = None,
    temperature: TemperatureOption = 1.0,
    top_p: TopPOption = 1.0,
    top_k: TopKOption = 0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    presence_penalty: PresenceOption = 0.0,
    frequency_penalty: FrequencyOption = 0.0,
    bias: LogitBiasOption = None,
    stop: StopOption = None,
    stop_id: StopIdOption = None,
    seed: SeedOption = None,
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    context: ContextOption = None,
    numerics: NumericsOption = NumericsMode.OFFICIAL,
    ops: OpsOption = OpsMode.AUTO,
    expert_memory: ExpertMemoryOption = "auto",
    expert_threads: ExpertThreadsOption = None,
    verify_reads: VerifyReadsOption = False,
    wire: WireOption = WireMode.AUTO,
    plain: PlainOption = False,
) -> None:
    """Answer one question: thinking on stderr, the answer on stdout, both as they come.

    Text from a pipe goes before the prompt: git diff | dsv4-mlx generate MODEL -p "review this".

    Example: dsv4-mlx generate ~/models/flash -p "Why is the sky blue?" --think off
    """
    from dsv4_mlx.cli.stdin import question
    from dsv4_mlx.engine.engine import Engine, EngineOptions
    from dsv4_mlx.engine.generate import answer
    from dsv4_mlx.engine.generate import complete as go_on
    from dsv4_mlx.engine.info import vocabulary
    from dsv4_mlx.engine.sampler import SamplingOptions
    from dsv4_mlx.machine.awake import Awake

    think = _no_thinking(call, think) if complete else think
    asked = question(prompt, exact=complete)
    rule = rule_of(json_schema, regex)
    sampling = SamplingOptions(
        temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, stop_ids=frozenset(stop_id or ()),
        repetition_penalty=repetition_penalty, presence_penalty=presence_penalty, seed=_seed(seed),
        frequency_penalty=frequency_penalty, logit_bias=logit_bias(bias), stop_strings=tuple(stop or ()),
    )  # fmt: skip
    folder = model_folder(model)
    options = EngineOptions(
        context=context, numerics=numerics.value, ops=chosen(ops, plain=plain), wire=wire.value,
        expert_memory=expert_memory, expert_threads=expert_threads, verify_reads=verify_reads,
    )  # fmt: skip
    if sampling.logit_bias or sampling.stop_ids:
        sampling.check(vocabulary(folder))  # before minutes of loading
    with Awake():
        with progress("loading", plain=plain) as loading:
            engine = Engine.open(folder, options, loading)
        tell(engine.expert_memory)
        held = form(engine, folder, rule, thinking=think is not ThinkMode.OFF)
        session = engine.session()
        if complete:
            of = engine, session, asked, sampling
            _say(go_on(*of, max_tokens=max_tokens, constraint=held["constraint"]))
        else:
            _say(answer(engine, session, asked, think.value, sampling, max_tokens=max_tokens, **held))


def _seed(given: int | None) -> int:
    return secrets.randbits(32) if given is None else given


def _no_thinking(call: typer.Context, think: ThinkMode) -> ThinkMode:
    """A text that goes on has none. Raises UsageError where it was asked for."""
    given = call.get_parameter_source("think")
    if think is not ThinkMode.OFF and given is not None and given.name == "COMMANDLINE":
        raise UsageError(
            "--complete and --think can't go together: a text that goes on has no thinking",
            next="leave one of them out",
        )
    return ThinkMode.OFF


def _say(pieces: Iterable[Piece]) -> None:
    """Thinking to stderr, the rest to stdout; on a terminal without what would steer it."""
    from dsv4_mlx.terminal.attach import printable

    thinking = False
    for piece in pieces:
        if piece.kind == "answer" and thinking:
            print(file=sys.stderr, flush=True)
        thinking = piece.kind == "thinking"
        stream = sys.stderr if thinking else sys.stdout
        print(printable(piece.text) if stream.isatty() else piece.text, end="", flush=True, file=stream)
    print(flush=True, file=sys.stderr if thinking else sys.stdout)
