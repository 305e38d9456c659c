"""dsv4-mlx generate"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from dsv4_mlx.cli.answer_format import JsonSchemaOption, RegexOption, form, rule_of
from dsv4_mlx.cli.console import progress, tell
from dsv4_mlx.cli.models import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, SAMPLING, EngineArguments, grouped
from dsv4_mlx.cli.options import THINK, MaxTokensOption, ModelArgument, Think, ThinkOption
from dsv4_mlx.engine.engine_options import SamplingOptions
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


@grouped
def generate(
    call: typer.Context,
    model: ModelArgument,
    *,
    prompt: PromptOption = None,
    complete: CompleteOption = False,
    think: ThinkOption = THINK,
    max_tokens: MaxTokensOption = None,
    sampling: Annotated[SamplingOptions, SAMPLING],
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    engine: Annotated[EngineArguments, ENGINE],
    plain: PlainOption = False,
) -> None:
    """Answer one question: thinking on stderr, the answer on stdout, both as they come.

    Text from a pipe goes before the prompt: git diff | dsv4-mlx generate MODEL -p "review this".

    Example: dsv4-mlx generate ~/models/flash -p "Why is the sky blue?" --think off
    """
    from dsv4_mlx.cli.stdin import question
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.engine.generate import answer
    from dsv4_mlx.engine.generate import complete as go_on
    from dsv4_mlx.engine.info import vocabulary
    from dsv4_mlx.machine.awake import Awake

    think = _no_thinking(call, think) if complete else think
    asked = question(prompt, exact=complete)
    rule = rule_of(json_schema, regex)
    folder = model_folder(model)
    options = engine.with_kernels(plain=plain)
    if sampling.logit_bias or sampling.stop_ids:
        sampling.check(vocabulary(folder))  # before minutes of loading
    with Awake():
        with progress("loading", plain=plain) as loading:
            opened = Engine.open(folder, options, loading)
        tell(opened.expert_memory)
        held = form(opened, folder, rule, thinking=think != "off")
        session = opened.session()
        if complete:
            of = opened, session, asked, sampling
            _say(go_on(*of, max_tokens=max_tokens, constraint=held["constraint"]))
        else:
            _say(answer(opened, session, asked, think, sampling, max_tokens=max_tokens, **held))


def _no_thinking(call: typer.Context, think: Think) -> Think:
    """A text that goes on has none. Raises UsageError where it was asked for."""
    given = call.get_parameter_source("think")
    if think != "off" and given is not None and given.name == "COMMANDLINE":
        raise UsageError(
            "--complete and --think can't go together: a text that goes on has no thinking",
            next="leave one of them out",
        )
    return "off"


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
