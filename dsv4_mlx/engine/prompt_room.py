"""Whether a prompt is one, and leaves room for an answer: the one place that says so."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_mlx.errors import DoesNotFit, InputError


def check_tokens(tokens: Sequence[int], vocabulary: int, context: int) -> None:
    """Raises InputError for no tokens or ids outside the vocabulary, DoesNotFit for too many."""
    if not tokens:
        raise InputError("there are no tokens", next="give at least one")
    wrong = next((i for i, token in enumerate(tokens) if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise InputError(f"token {wrong} is {tokens[wrong]}, expected an id from 0 to {vocabulary - 1}")
    if len(tokens) > context:
        raise DoesNotFit(
            f"the prompt has {len(tokens)} tokens, the context holds {context}",
            next="shorten the prompt, or give a larger --context",
        )


def room_for_answer(prompt: int, context: int, max_tokens: int | None = None) -> int:
    """Tokens that an answer to `prompt` tokens may have: what the context leaves, at most `max_tokens`."""
    room = max(0, context - prompt)
    return room if max_tokens is None else min(room, max_tokens)


def check_prompt(prompt: Sequence[int], vocabulary: int, context: int) -> None:
    """As check_tokens; DoesNotFit also for a prompt that leaves no room for an answer."""
    check_tokens(prompt, vocabulary, context)
    if not room_for_answer(len(prompt), context):
        raise DoesNotFit(
            f"the prompt has {len(prompt)} tokens and fills the context: an answer has no room",
            next="shorten the prompt, or give a larger --context",
        )
