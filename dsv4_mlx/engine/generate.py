"""THE MAIN PATH: prompt -> tokens -> prefill -> decode -> text. Start reading here.

    messages --Prompts.encode--> ids                                     tokenizer/template.py
        ids --session.prefill--> logits after the prompt  prefill        engine/session.py
     logits --Constraint.allow--> logits         where one is given      engine/constraint.py
     logits --sample--> id                                               engine/sampler.py
         id --session.advance--> logits                   decode         engine/session.py
         id --Answer.push--> pieces of thinking and answer               tokenizer/output_parser.py

`prefill` and `advance` run the same forward pass, model/transformer.py, over more rows or one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Literal

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.decode import GenerationLimits, PrefillProgress, Sampled, ThinkingBudget, likelihood
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.engine.session import Session, TokenSequence
from dsv4_mlx.tokenizer.output_parser import AnswerParser, Piece
from dsv4_mlx.tokenizer.template import Think

Progress = Callable[[int, int], None]  # prompt tokens done, in all


def steps(
    session: TokenSequence, prompt: Sequence[int], options: SamplingOptions, wanted: GenerationLimits
) -> Generator[PrefillProgress | Sampled, None, Literal["stop", "length"]]:
    """The one loop: prefill cut by cut, then token by token; returns what ended it.

    It may be left or paused at any yield; the session then holds what was computed. The stopping token is
    not yielded, and the session does not take it in. Raises DoesNotFit for a prompt longer than the
    context, InputError and UsageError for ids that the model has not.
    """
    options.check(session.vocabulary)
    constraint = wanted.constraint
    room = session.room_after(prompt)
    room = room if wanted.max_tokens is None else min(wanted.max_tokens, room)
    sampler = Sampler(options, prompt=len(prompt))
    thinking = ThinkingBudget(prompt, session.markers, wanted.think_budget)
    for done, total in session.prefill(prompt):
        yield PrefillProgress(done, total)
    for _ in range(room):
        logits = session.logits
        token = thinking.forced
        if token is None:
            token = sampler(logits if constraint is None else constraint.allow(logits), session.tokens)
        if token == session.markers.end or token in options.stop_ids:
            return "stop"
        thinking.accept(token)
        if constraint is not None:
            constraint.accept(token)
        if wanted.logprobs is None:
            yield Sampled(token)
        else:
            yield Sampled(token, *likelihood(logits, token, wanted.logprobs))
        session.advance(token)
    return "length"


def generate(
    session: TokenSequence,
    prompt: list[int],
    options: SamplingOptions,
    *,
    max_tokens: int | None = None,
    progress: Progress | None = None,
    constraint: Constraint | None = None,
) -> Iterator[int]:
    """Yield token ids until one that stops, `max_tokens`, the end of the context, or the caller is done.

    The stopping token is not yielded. Stop strings are the caller's: see `answer`. Raises as `steps`.
    """
    for step in steps(session, prompt, options, GenerationLimits(max_tokens, constraint)):
        if isinstance(step, Sampled):
            yield step.token
        elif progress is not None and step.done:
            progress(step.done, step.total)


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
    count = 0
    for token in generate(session, prompt, options, max_tokens=max_tokens, constraint=constraint):
        count += 1
        yield from parser.push(token)
        if parser.stopped:
            return
    yield from parser.finish(length=count == max_tokens)
