"""dsv4-mlx generate, and the form an answer must have (--json-schema, --regex)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from dsv4_mlx.cli.console import progress, tell
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, SAMPLING, EngineArguments, grouped
from dsv4_mlx.cli.options import THINK, MaxTokensOption, ModelArgument, Think, ThinkOption
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import AnswerCut, InputError, Progress, UsageError

if TYPE_CHECKING:
    from dsv4_mlx.engine.constraint import Constraint
    from dsv4_mlx.engine.decode import Ended
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.grammar.rules import Json, Regex
    from dsv4_mlx.tokenizer.output_parser import Piece

JsonSchemaOption = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="The answer is JSON of the schema in FILE."),
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", metavar="PATTERN", help="The whole answer matches PATTERN.")
]


class AnswerFormat(TypedDict):
    """What holds an answer to its form, and the schema that the prompt shows the model."""

    constraint: Constraint | None
    schema: Any


def rule_of(schema: Path | None, pattern: str | None) -> Json | Regex | None:
    """The rule that the two options make. Raises UsageError for both, InputError for a schema without use."""
    if schema is not None and pattern is not None:
        raise UsageError("--json-schema and --regex can't go together", next="give one of them")
    if schema is None and pattern is None:
        return None
    from dsv4_mlx.grammar.grammars import check
    from dsv4_mlx.grammar.rules import Json, Regex

    rule = Json(_text(schema)) if schema is not None else Regex(pattern or "")
    check(rule)  # a defect shows before a model is loaded
    return rule


def form(engine: Engine, folder: Path, rule: Json | Regex | None, *, thinking: bool) -> AnswerFormat:
    """The constraint of one answer. Raises InputError for a rule that can't be enforced."""
    if rule is None:
        return {"constraint": None, "schema": None}
    from dsv4_mlx.grammar.grammars import Grammars
    from dsv4_mlx.grammar.rules import Json

    grammars = Grammars(folder, engine.config.vocab_size, engine.prompts.markers)
    try:
        constraint = grammars.constraint(rule, thinking=thinking)
    finally:
        grammars.close()
    return {"constraint": constraint, "schema": json.loads(rule.schema) if isinstance(rule, Json) else None}


def is_whole(
    rule: Json | Regex | None, constraint: Constraint | None, answer: str, vocabulary: int, end: int
) -> bool:
    """Whether an answer has its form to the end: where `end` is the token that ends a turn, it may follow."""
    if rule is None or constraint is None:
        return True
    import numpy as np

    from dsv4_mlx.grammar.rules import Json

    if not np.isfinite(constraint.allow(np.zeros(vocabulary, np.float32))[end]):
        return False
    try:  # a stop string takes text away that the constraint has seen
        return not isinstance(rule, Json) or json.loads(answer) is not ...
    except ValueError:
        return False


def _text(schema: Path) -> str:
    try:
        text = schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the schema can't be read: {error}", where=schema) from None
    if not text.strip():
        raise InputError("the file of the schema is empty", where=schema, next="write a schema in it")
    return text


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

    Text from a pipe goes before the prompt: git diff | dsv4-mlx generate MODEL -p "review this". What a limit
    cuts off is said on stderr; with --json-schema or --regex the exit code is then 4.

    Example: dsv4-mlx generate ~/models/flash -p "Why is the sky blue?" --think off
    """
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.engine.generate import answer
    from dsv4_mlx.engine.generate import complete as go_on
    from dsv4_mlx.engine.info import vocabulary
    from dsv4_mlx.terminal.attach import question

    think = _no_thinking(call, think) if complete else think
    asked = question(prompt, exact=complete)
    rule = rule_of(json_schema, regex)
    folder = model_folder(model)
    options = engine.with_kernels(plain=plain)
    if sampling.logit_bias or sampling.stop_ids:
        sampling.check(vocabulary(folder))  # before minutes of loading
    with progress("loading", plain=plain) as loading:
        opened = Engine.open(folder, options, loading)
    tell(opened.expert_memory)
    held = form(opened, folder, rule, thinking=think != "off")
    session, constraint = opened.session(), held["constraint"]

    def pieces(show: Progress) -> Generator[Piece, None, Ended]:
        if complete:
            of = opened, session, asked, sampling
            return go_on(*of, max_tokens=max_tokens, constraint=constraint, progress=show)
        of_question = opened, session, asked, think, sampling
        return answer(*of_question, max_tokens=max_tokens, **held, progress=show)

    said, ended = _say(pieces, plain)
    whole = is_whole(rule, constraint, said, opened.config.vocab_size, session.markers.end)
    limit = f"--max-tokens {max_tokens}"
    if max_tokens is None or len(session.tokens) >= opened.context - 1:
        limit = f"the context of {opened.context:,}"
    if ended == "length" and not (rule and whole):
        tell(f"(cut off: the limit of tokens is reached, {limit})")
    if not said.strip():
        tell("(no answer: it was still thinking)" if ended == "length" and think != "off" else "(no answer)")
    if not whole:
        raise AnswerCut(
            "the answer is cut off: it does not have the form that was asked for",
            next="give more --max-tokens, or a larger --context; --stop and --stop-id cut off as well",
        )


def _no_thinking(call: typer.Context, think: Think) -> Think:
    """A text that goes on has none. Raises UsageError where it was asked for."""
    given = call.get_parameter_source("think")
    if think != "off" and given is not None and given.name == "COMMANDLINE":
        raise UsageError(
            "--complete and --think can't go together: a text that goes on has no thinking",
            next="leave one of them out",
        )
    return "off"


def _say(pieces: Callable[[Progress], Generator[Piece, None, Ended]], plain: bool) -> tuple[str, Ended]:
    """Thinking to stderr, the rest to stdout; on a terminal without what would steer it. Until then it shows
    how far the prompt is read. Returns the answer, and what ended it."""
    from dsv4_mlx.terminal.attach import printable

    with progress("reading the prompt", "tokens", plain=plain) as show:
        coming = pieces(lambda done, total: show(done, total))
        piece, ended = _next(coming)
    thinking, said = False, []
    while piece is not None:
        if piece.kind == "answer" and thinking:
            print(file=sys.stderr, flush=True)
        thinking = piece.kind == "thinking"
        if not thinking:
            said.append(piece.text)
        stream = sys.stderr if thinking else sys.stdout
        print(printable(piece.text) if stream.isatty() else piece.text, end="", flush=True, file=stream)
        piece, ended = _next(coming)
    print(flush=True, file=sys.stderr if thinking else sys.stdout)
    return "".join(said), ended


def _next(pieces: Generator[Piece, None, Ended]) -> tuple[Piece | None, Ended]:
    """The next piece; None and what ended the answer after the last."""
    try:
        return next(pieces), "stop"
    except StopIteration as end:
        ended: Ended = end.value
        return None, ended
