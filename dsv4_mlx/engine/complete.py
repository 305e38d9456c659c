"""A text -> the same text, longer: no template, which is what base models are for."""

from __future__ import annotations

from collections.abc import Iterator

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.engine.session import Session
from dsv4_mlx.tokenizer.markers import PlainText, Spelling
from dsv4_mlx.tokenizer.output_parser import Piece


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
    the checkpoint spells them. Raises as `engine.generate.answer`.
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
