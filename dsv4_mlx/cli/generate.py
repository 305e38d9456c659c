"""dsv4-mlx generate, and the form an answer must have (--json-schema, --regex)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from dsv4_mlx.cli.console import progress, tell
from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, SAMPLING, EngineArguments, MaxTokensOption, grouped
from dsv4_mlx.cli.options import (
    THINK,
    ModelArgument,
    SystemOption,
    Think,
    ThinkBudgetOption,
    ThinkOption,
)
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.errors import AnswerCut, InputError, Progress, UsageError
from dsv4_mlx.machine.support import terminal_environment
from dsv4_mlx.machine.units import duration, rate
from dsv4_mlx.terminal.attach import printable

if TYPE_CHECKING:
    from dsv4_mlx.engine.constraint import Constraint
    from dsv4_mlx.engine.decode import Ended
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.grammar.rules import Json, Regex
    from dsv4_mlx.tokenizer.output_parser import Piece

DIM, PLAIN = "\x1b[2m", "\x1b[22m"  # on a terminal, thinking looks unlike the answer

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


PromptArgument = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="What to ask. Files and piped text go before it.")
]
PromptOption = Annotated[
    str | None, typer.Option("--prompt", "-p", metavar="TEXT", help="What to ask, as an option.")
]
FileOption = Annotated[
    list[Path] | None,
    typer.Option("--file", "-f", metavar="FILE", help="A text file to ask about. Repeatable."),
]
PlainOption = Annotated[
    bool, typer.Option("--plain", help="No bar that moves, nothing dimmed: lines of text only.")
]
CompleteOption = Annotated[
    bool,
    typer.Option("--complete", help="Go on with the text as it is, no question and answer: for base models."),
]
StatsOption = Annotated[bool, typer.Option("--stats", help="Afterwards, tokens and speeds on stderr.")]
AnswerAsJsonOption = Annotated[
    bool, typer.Option("--json", help="Print answer, thinking, tokens and speeds as JSON, at the end.")
]


@grouped
def generate(
    call: typer.Context,
    model: ModelArgument,
    prompt: PromptArgument = None,
    *,
    prompt_option: PromptOption = None,
    files: FileOption = None,
    system: SystemOption = "",
    complete: CompleteOption = False,
    think: ThinkOption = THINK,
    think_budget: ThinkBudgetOption = None,
    max_tokens: MaxTokensOption = None,
    sampling: Annotated[SamplingOptions, SAMPLING],
    json_schema: JsonSchemaOption = None,
    regex: RegexOption = None,
    engine: Annotated[EngineArguments, ENGINE],
    stats: StatsOption = False,
    as_json: AnswerAsJsonOption = False,
    plain: PlainOption = False,
) -> None:
    """Answer one question: thinking on stderr, the answer on stdout, both as they come.

    Text from a pipe goes before the prompt: git diff | dsv4-mlx generate MODEL "review this". What a limit
    cuts off is said on stderr; with --json-schema or --regex the exit code is then 4.

    Example: dsv4-mlx generate ~/models/flash "Why is the sky blue?" --think off
    """
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.engine.generate import answer
    from dsv4_mlx.engine.generate import complete as go_on
    from dsv4_mlx.engine.info import vocabulary

    if complete:
        think = _no_thinking(call, think, system, files)
    asked = _asked(prompt, prompt_option, files or [], exact=complete)
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
        return answer(
            *(opened, session, asked, think, sampling), **held,
            system=system, max_tokens=max_tokens, think_budget=think_budget, progress=show,
        )  # fmt: skip

    said = _say(pieces, plain, quiet=as_json)
    whole = is_whole(rule, constraint, said.answer, opened.config.vocab_size, session.markers.end)
    said.tokens = len(session.tokens) - said.prompt
    if as_json:
        print(json.dumps(said.to_json(), indent=1, ensure_ascii=False))
    full = max_tokens is None or len(session.tokens) >= opened.context - 1
    limit = f"the context of {opened.context:,}" if full else f"--max-tokens {max_tokens}"
    for remark in said.remarks(limit, form_is_whole=bool(rule and whole), thinks=think != "off"):
        tell(remark)
    if stats:
        tell(said.figures())
    if not whole:
        raise _cut()


def _cut() -> AnswerCut:
    return AnswerCut(
        "the answer is cut off: it does not have the form that was asked for",
        next="give more --max-tokens, or a larger --context; --stop and --stop-id cut off as well",
    )


def _asked(prompt: str | None, option: str | None, files: list[Path], *, exact: bool) -> str:
    """The question: files, piped text, the prompt. Raises UsageError, InputError."""
    from dsv4_mlx.terminal.attach import is_piped, question, read_text

    if prompt is not None and option is not None:
        raise UsageError("the prompt is given twice", next="leave out -p, or the prompt after MODEL")
    prompt = option if prompt is None else prompt
    read = [read_text(str(file)).prompt() for file in files]
    if prompt is not None or is_piped() or not read:
        read.append(question(prompt, exact=exact))
    return "\n".join(read)


def _no_thinking(call: typer.Context, think: Think, system: str, files: list[Path] | None) -> Think:
    """A text that goes on has none. Raises UsageError for what it can't have where that was asked for."""
    given = call.get_parameter_source("think")
    asked = think != "off" and given is not None and given.name == "COMMANDLINE"
    for option, is_given in (("--think", asked), ("--system", bool(system)), ("--file", bool(files))):
        if is_given:
            raise UsageError(
                f"--complete and {option} can't go together: a text that goes on is no conversation",
                next="leave one of them out",
            )
    return "off"


@dataclass
class Said:
    """One answer, in whole. Times are of time.monotonic()."""

    began: float
    answer: str = ""
    thinking: str = ""
    ended: Ended = "stop"
    prompt: int = 0  # tokens
    tokens: int = 0  # thinking and answer, without what ended it
    read: float = 0.0  # when the prompt was
    over: float = 0.0

    def _rates(self) -> tuple[float, float]:
        """Tokens a second of the prompt, and of the answer."""
        reading, saying = self.read - self.began, self.over - self.read
        return self.prompt / max(reading, 1e-6), self.tokens / max(saying, 1e-6)

    def remarks(self, limit: str, *, form_is_whole: bool, thinks: bool) -> Iterator[str]:
        """What a person should know of an answer that is not all there; `limit` is what may have cut it."""
        if self.ended == "length" and not form_is_whole:
            yield f"(cut off: the limit of tokens is reached, {limit})"
        if not self.answer.strip():
            still = self.ended == "length" and thinks
            yield "(no answer: it was still thinking; --think-budget N ends that)" if still else "(no answer)"

    def figures(self) -> str:
        """For people."""
        reading, saying = (rate(value) for value in self._rates())
        return (
            f"prompt {self.prompt:,} tokens at {reading} tokens/s; answer {self.tokens:,} tokens at {saying} "
            f"tokens/s; {duration(self.over - self.began)} in all"
        )

    def to_json(self) -> dict[str, Any]:
        reading, saying = self._rates()
        return {
            "answer": self.answer,
            "thinking": self.thinking,
            "ended": self.ended,
            "prompt_tokens": self.prompt,
            "answer_tokens": self.tokens,
            "prompt_tokens_per_second": round(reading, 2),
            "answer_tokens_per_second": round(saying, 2),
        }


def _say(pieces: Callable[[Progress], Generator[Piece, None, Ended]], plain: bool, *, quiet: bool) -> Said:
    """Thinking to stderr, the rest to stdout; on a terminal without what would steer it. Until then it shows
    how far the prompt is read. `quiet`: nothing of the answer is written.
    """
    said = Said(time.monotonic())

    def reading(done: int, total: int) -> None:
        said.prompt, said.read = total, time.monotonic()
        show(done, total)

    with progress("reading the prompt", "tokens", plain=plain) as show:
        coming = pieces(reading)
        piece, said.ended = _next(coming)
    write = _Writer(plain)
    while piece is not None:
        if piece.kind == "thinking":
            said.thinking += piece.text
        else:
            said.answer += piece.text
        if not quiet:
            write(piece)
        piece, said.ended = _next(coming)
    said.over = time.monotonic()
    if not quiet:
        write.end()
    return said


class _Writer:
    """Pieces to stderr and stdout."""

    def __init__(self, plain: bool) -> None:
        self._thinking = False
        no_color = terminal_environment().get("NO_COLOR")
        self._dims = sys.stderr.isatty() and not plain and not no_color

    def __call__(self, piece: Piece) -> None:
        thinking = piece.kind == "thinking"
        if self._thinking and not thinking:
            print(file=sys.stderr, flush=True)
        self._thinking = thinking
        stream = sys.stderr if thinking else sys.stdout
        text = printable(piece.text) if stream.isatty() else piece.text
        if thinking and self._dims:
            text = f"{DIM}{text}{PLAIN}"
        print(text, end="", flush=True, file=stream)

    def end(self) -> None:
        print(flush=True, file=sys.stderr if self._thinking else sys.stdout)


def _next(pieces: Generator[Piece, None, Ended]) -> tuple[Piece | None, Ended]:
    """The next piece; None and what ended the answer after the last."""
    try:
        return next(pieces), "stop"
    except StopIteration as end:
        ended: Ended = end.value
        return None, ended
