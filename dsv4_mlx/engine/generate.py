"""THE MAIN PATH: prompt -> tokens -> prefill -> decode -> text. Start reading here.

    messages --Prompts.encode--> ids                                     tokenizer/template.py
        ids --session.prefill--> logits after the prompt  prefill        engine/session.py
     logits --Constraint.allow--> logits         where one is given      engine/constraint.py
     logits --sample--> id                                               engine/sampler.py
         id --session.advance--> logits                   decode         engine/session.py
         id --TextParser.push--> pieces of thinking and answer           tokenizer/output_parser.py

`prefill` and `advance` run the same forward pass, model/transformer.py, over more rows or one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import Ended, Event, Finished, GenerationLimits, Token, TokenSequence, decode
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser
from dsv4_mlx.tokenizer.template import Think


def stream(
    session: TokenSequence, prompt: Sequence[int], options: SamplingOptions, wanted: GenerationLimits
) -> Iterator[Event]:
    """The events of one answer, Finished the last of them. Raises as `decode`."""
    yield Finished((yield from decode(session, prompt, options, wanted)))


def generate(
    session: TokenSequence,
    prompt: Sequence[int],
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Yield token ids until one that stops, `max_tokens`, the end of the context, or the caller is done.

    The stopping token is not yielded. Stop strings are the caller's: see `answer`. Raises as `decode`.
    """
    for event in decode(session, prompt, options, GenerationLimits(max_tokens, constraint)):
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
) -> Generator[Piece, None, Ended]:
    """One question, one answer: yields pieces of thinking and answer as the model says them, and returns
    what ended it.

    schema: what the prompt asks for; `constraint` is what holds the answer to it. Raises as `generate`, and
    DoesNotFit for a prompt that leaves no room for an answer.
    """
    conversation = engine.prompts.ask(text, think, schema)
    prompt = engine.prompts.encode(conversation)
    session.leave_room(prompt)
    options = options.without(engine.prompts.spelling.dsml)  # no tools, so no call of one
    parser = TextParser(conversation, engine.prompts.spelling, options.stop_strings)
    events = stream(session, prompt, options, GenerationLimits(max_tokens, constraint))
    return (yield from read_answer(events, parser))


def complete(
    engine: Engine,
    session: Session,
    text: str,
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> Generator[Piece, None, Ended]:
    """What follows `text`, without a template, for base models. Markers in the text count as text; those
    that the model writes are left out. Raises as `answer`.
    """
    spelling = engine.prompts.spelling
    prompt = spelling.begun(text)
    session.leave_room(prompt)
    parser, options = TextParser(None, spelling, options.stop_strings), options.without(spelling.dsml)
    events = stream(session, prompt, options, GenerationLimits(max_tokens, constraint))
    return (yield from read_answer(events, parser))


def read_answer(events: Iterator[Event], parser: TextParser) -> Generator[Piece, None, Ended]:
    """The events of one answer -> what it says; returns what ended it, the model, its text or a limit."""
    length = False
    for event in events:
        if isinstance(event, Token):
            yield from parser.push(event.id)
            if parser.over:
                break
        elif isinstance(event, Finished):
            length = event.reason == "length"
    yield from parser.finish(length=length)
    return parser.reason
