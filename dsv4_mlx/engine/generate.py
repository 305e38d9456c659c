"""THE MAIN PATH: prompt -> tokens -> prefill -> decode -> text. Start reading here.

    messages --Prompts.encode--> ids                                     tokenizer/template.py
        ids --decode--> Rows --SessionRows--> Drawn --> Token, Token ...  engine/decode.py

    What answers a request for rows, engine/session.py:
        ids --Session.prefill--> logits after the prompt
         id --Session.advance--> logits
     logits --Chooser.draw--> id                                         engine/chooser.py

    id --TextParser.push-->   pieces of thinking and answer              tokenizer/output_parser.py

`prefill` and `advance` run the same forward pass, model/transformer.py, over more rows or one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from dsv4_mlx.engine.chooser import Chooser, GenerationLimits
from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import Drawn, Ended, Event, Finished, PrefillProgress, Rows, Token, decode
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.session import Session, SessionRows, TokenSequence, check_prompt, room_for_answer
from dsv4_mlx.errors import Progress
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser
from dsv4_mlx.tokenizer.template import Think

Answerer = Callable[[Rows], Generator[PrefillProgress, None, Drawn]]


def run(
    rows: SessionRows,
    prompt: Sequence[int],
    options: SamplingOptions,
    wanted: GenerationLimits,
    answer: Answerer | None = None,
) -> Generator[PrefillProgress | Token, None, Ended]:
    """The decode loop over one session, prompt cut by cut and then token by token; returns what ended it.

    `answer` answers in place of `rows`, by the same session.

    It may be left or paused at any yield; the session then holds what was computed, and never what stopped
    it. Raises DoesNotFit for a prompt longer than the context, InputError and UsageError for ids that the
    model has not.
    """
    session = rows.session
    options.check(session.vocabulary)
    room = room_for_answer(len(prompt), session.context, wanted.max_tokens)
    choose = Chooser(prompt, session.markers, options, wanted)
    scores = wanted.scores(prompt, session.markers)
    return (yield from drive(decode(choose, room, wanted.logprobs, scores), answer or rows))


def drive(
    loop: Generator[Rows | Token, Drawn | None, Ended],
    answer: Answerer,
) -> Generator[PrefillProgress | Token, None, Ended]:
    """`loop`, its requests answered: what is left are its tokens, and what is said of the prompt."""
    drawn: Drawn | None = None
    while True:
        try:
            step = loop.send(drawn)
        except StopIteration as end:
            ended: Ended = end.value
            return ended
        drawn = None
        if isinstance(step, Rows):
            drawn = yield from answer(step)
        else:
            yield step


def stream(
    rows: SessionRows, prompt: Sequence[int], options: SamplingOptions, wanted: GenerationLimits
) -> Iterator[Event]:
    """The events of one answer, Finished the last of them. Raises as `run`."""
    yield Finished((yield from run(rows, prompt, options, wanted)))


def generate(
    session: TokenSequence,
    prompt: Sequence[int],
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Yield token ids until one that stops, `max_tokens`, the end of the context, or the caller is done.

    The stopping token is not yielded. Stop strings are the caller's: see `answer`. Raises as `run`.
    """
    for event in run(SessionRows(session), prompt, options, GenerationLimits(max_tokens, constraint)):
        if isinstance(event, Token):
            yield event.id


def answer(
    engine: Engine,
    session: Session,
    text: str,
    think: Think,
    options: SamplingOptions,
    *,
    system: str = "",
    max_tokens: int | None = None,
    think_budget: int | None = None,
    constraint: Constraint | None = None,
    schema: Any = None,
    progress: Progress | None = None,
) -> Generator[Piece, None, Ended]:
    """One question, one answer: yields pieces of thinking and answer as the model says them, and returns
    what ended it. `progress` counts tokens of the prompt.

    think_budget: tokens of thinking before its end is forced. schema: what the prompt asks for; `constraint`
    is what holds the answer to it. Raises as `generate`, and DoesNotFit for a prompt that leaves no room for
    an answer.
    """
    conversation = engine.prompts.ask(text, think, schema, system)
    prompt = engine.prompts.encode(conversation)
    check_prompt(prompt, session.vocabulary, session.context)
    parser = TextParser(conversation, engine.prompts.spelling, options.stop_strings)
    options = options.without(engine.prompts.spelling.dsml)  # no tools, so no call of one
    limits = GenerationLimits(max_tokens, constraint, think_budget=think_budget)
    return (yield from read_answer(stream(SessionRows(session), prompt, options, limits), parser, progress))


def complete(
    engine: Engine,
    session: Session,
    text: str,
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
    progress: Progress | None = None,
) -> Generator[Piece, None, Ended]:
    """What follows `text`, without a template. Markers in it count as text; those that the model writes are
    left out. Raises as `answer`.
    """
    spelling = engine.prompts.spelling
    prompt = spelling.begun(text)
    check_prompt(prompt, session.vocabulary, session.context)
    parser, options = TextParser(None, spelling, options.stop_strings), options.without(spelling.dsml)
    limits = GenerationLimits(max_tokens, constraint)
    return (yield from read_answer(stream(SessionRows(session), prompt, options, limits), parser, progress))


def read_answer(
    events: Iterator[Event], parser: TextParser, progress: Progress | None = None
) -> Generator[Piece, None, Ended]:
    """The events of one answer -> what it says; returns what ended it, the model, its text or a limit."""
    length = False
    for event in events:
        if isinstance(event, Token):
            yield from parser.push(event.id)
            if parser.over:
                break
        elif isinstance(event, PrefillProgress) and progress is not None:
            progress(event.done, event.total)
        elif isinstance(event, Finished):
            length = event.reason == "length"
    yield from parser.finish(length=length)
    return parser.reason
