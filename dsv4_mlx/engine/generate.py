"""THE MAIN PATH: prompt -> tokens -> prefill -> decode -> text. Start reading here.

    messages --Prompts.encode--> ids                                     tokenizer/template.py
        ids --decode--> Rows --SessionRows--> Drawn --> Token, Token ...  engine/decode.py

    What answers a request for rows, engine/session.py:
        ids --Session.prefill--> logits after the prompt
         id --Session.advance--> logits
     logits --Chooser.draw--> id                                         engine/chooser.py

    id --AnswerParser.push--> pieces of thinking and answer              tokenizer/output_parser.py

`prefill` and `advance` run the same forward pass, model/transformer.py, over more rows or one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from dsv4_mlx.engine.chooser import Chooser, GenerationLimits
from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import Drawn, Ended, Event, Finished, PrefillProgress, Rows, Token, decode
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.engine.session import Session, SessionRows, TokenSequence
from dsv4_mlx.tokenizer.markers import PlainText, Spelling
from dsv4_mlx.tokenizer.output_parser import AnswerParser, Piece
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
    room = session.room_after(prompt)
    room = room if wanted.max_tokens is None else min(wanted.max_tokens, room)
    choose = Chooser(prompt, session.markers, options, wanted)
    return (yield from drive(decode(choose, room, wanted.logprobs), answer or rows))


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
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
    schema: Any = None,
) -> Iterator[Piece]:
    """One question, one answer: yields pieces of thinking and answer as the model says them.

    schema: what the prompt asks for; `constraint` is what holds the answer to it. Raises as `generate`, and
    DoesNotFit for a prompt that leaves no room for an answer.
    """
    conversation = engine.prompts.ask(text, think, schema)
    prompt = engine.prompts.encode(conversation)
    session.leave_room(prompt)
    parser = AnswerParser(conversation, engine.prompts.tokenizer, list(options.stop_strings))
    for event in stream(SessionRows(session), prompt, options, GenerationLimits(max_tokens, constraint)):
        if isinstance(event, Token):
            yield from parser.push(event.id)
            if parser.stopped:
                return
        elif isinstance(event, Finished):
            yield from parser.finish(length=event.reason == "length")


def complete(
    session: Session,
    spelling: Spelling,
    text: str,
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Piece]:
    """What follows `text`, which is not yielded. Markers in it are text; those that the model writes come as
    the checkpoint spells them. Raises as `answer`.
    """
    prompt = spelling.begun(text)
    session.leave_room(prompt)
    decoder, done = PlainText(spelling, list(options.stop_strings)), 0
    for token in generate(session, prompt, options, max_tokens=max_tokens, constraint=constraint):
        decoder.push([token])
        yield Piece("answer", spelling.original(decoder.text[done:]))
        done = len(decoder.text)
        if decoder.stopped:
            return
    yield Piece("answer", spelling.original(decoder.whole()[done:]))
