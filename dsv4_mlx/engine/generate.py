"""THE MAIN PATH: prompt -> tokens -> prefill -> decode -> text. Start reading here.

    messages --Prompts.encode--> ids                                     chat/prompt.py
        ids --session.prefill--> logits after the prompt  prefill        engine/session.py
     logits --Constraint.allow--> logits         where one is given      engine/constraint.py
     logits --sample--> id                                               engine/sampler.py
         id --session.advance--> logits                   decode         engine/session.py
         id --Answer.push--> pieces of thinking and answer               chat/answer.py

`prefill` and `advance` run the same forward pass, model/transformer.py, over more rows or one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import Event, Finished, GenerationLimits, Token, TokenSequence, decode
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.tokenizer.output_parser import AnswerParser, Piece
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
) -> Iterator[Piece]:
    """One question, one answer: yields pieces of thinking and answer as the model says them.

    schema: what the prompt asks for; `constraint` is what holds the answer to it. Raises as `generate`, and
    DoesNotFit for a prompt that leaves no room for an answer.
    """
    conversation = engine.prompts.ask(text, think, schema)
    prompt = engine.prompts.encode(conversation)
    session.leave_room(prompt)
    parser = AnswerParser(conversation, engine.prompts.tokenizer, list(options.stop_strings))
    for event in stream(session, prompt, options, GenerationLimits(max_tokens, constraint)):
        if isinstance(event, Token):
            yield from parser.push(event.id)
            if parser.stopped:
                return
        elif isinstance(event, Finished):
            yield from parser.finish(length=event.reason == "length")
