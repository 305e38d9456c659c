"""A text -> the same text, longer: no template, which is what base models are for."""

from __future__ import annotations

from collections.abc import Iterator

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.tokenizer.markers import Spelling
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser


def complete(
    session: Session,
    spelling: Spelling,
    text: str,
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    constraint: Constraint | None = None,
) -> Iterator[Piece]:
    """What follows `text`, which is not yielded. Markers in it are text; those that the model writes are
    left out. Raises as `engine.generate.answer`.
    """
    prompt = spelling.begun(text)
    session.leave_room(prompt)
    parser = TextParser(None, spelling, options.stop_strings)
    options = options.without(spelling.dsml)
    for token in generate(session, prompt, options, max_tokens=max_tokens, constraint=constraint):
        yield from parser.push(token)
        if parser.over:
            return
    yield from parser.finish(length=False)
