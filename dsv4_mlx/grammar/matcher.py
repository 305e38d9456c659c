"""A grammar and where an answer stands in it.

tokenizer.json -> the tokens as grammars see them: bytes for text, and markers that no text can spell.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer

from dsv4_mlx.engine.constraint import Constraint, Mask
from dsv4_mlx.errors import InputError, ModelOutputError

DSML = "｜DSML｜"  # the marker of tool calls, one token


class Vocabulary:
    """`size`: ids of the model. `end`: the token that ends a turn. `dsml`: None if the tokenizer has none."""

    def __init__(self, path: Path, size: int, end: int) -> None:
        """Takes seconds at full size: an index over every token's bytes. Raises InputError."""
        document = _read(path)
        try:
            added = document.setdefault("added_tokens", [])
            # Some official markers, </think> among them, are not called special there: a JSON string
            # could hold them, and the parser of the answer would take them for structure.
            for token in added:
                token["special"] = True
            self.size, self.end = size, end
            self.dsml: int | None = next((t["id"] for t in added if t["content"] == DSML), None)
            text = json.dumps(document, ensure_ascii=False)
            self.tokens = LLTokenizer(text, n_vocab=size, eos_token=end)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"tokenizer.json can't be used for grammars: {error}", where=path) from None

    @cached_property
    def digits(self) -> list[int]:
        """Tokens that begin with a digit."""
        return [token for token in range(self.size) if self.text(token)[:1].isdigit()]

    def text(self, token: int) -> bytes:
        """The bytes of one token."""
        return self.tokens.decode_bytes([token])


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"tokenizer.json can't be read: {error}", where=path) from None
    if not isinstance(document, dict):
        raise InputError("tokenizer.json is not an object", where=path)
    return document


DIGITS = 20  # as many as the largest integer of 64 bits has
_DIGITS = b"0123456789"
_ARGUMENT = b"parameter name="


class Matched:
    """The answer follows a grammar, from its first token to its last."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        self.vocabulary = vocabulary
        self._matcher = matcher
        self._bits = np.zeros((vocabulary.size + 31) // 32, np.int32)

    @property
    def finished(self) -> bool:
        return bool(self._matcher.is_stopped())

    def mask(self, size: int) -> Mask:
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        if self._matcher.is_error():
            raise ModelOutputError(
                f"the grammar can't go on: {first_line(self._matcher.get_error())}",
                next="use a simpler schema or pattern",
            )
        return np.unpackbits(self._bits.view(np.uint8), count=size, bitorder="little").view(np.bool_)

    def accept(self, token: int) -> None:
        # Asked first: a refused token would leave the matcher in an error it never leaves.
        if token == self.vocabulary.end:
            may = self._matcher.is_accepting()
        else:
            may = self._matcher.validate_tokens([token]) == 1
        if not (may and self._matcher.consume_token(token)):
            raise InputError(f"token {token} may not follow here: the grammar does not allow it")

    def fork(self) -> Matched:
        return Matched(self.vocabulary, self._matcher.deep_copy())


class ShortNumbers:
    """JSON whose numbers end: an unsure model would go on with digits. After DIGITS in a row, outside
    of strings, no other is drawn unless nothing else may follow."""

    def __init__(self, inner: Matched) -> None:
        self.inner = inner
        self._run = 0  # digits in a row
        self._quoted = self._escaped = False

    @property
    def finished(self) -> bool:
        return self.inner.finished

    def mask(self, size: int) -> Mask:
        mask = self.inner.mask(size)
        if self._quoted or self._run < DIGITS:
            return mask
        other = mask.copy()
        other[self.inner.vocabulary.digits] = False
        return other if other.any() else mask

    def accept(self, token: int) -> None:
        self.inner.accept(token)
        for byte in self.inner.vocabulary.text(token):
            if self._quoted:
                self._quoted = self._escaped or byte != ord('"')
                self._escaped = not self._escaped and byte == ord("\\")
            else:
                self._quoted = byte == ord('"')
                self._run = self._run + 1 if byte in _DIGITS else 0

    def fork(self) -> ShortNumbers:
        twin = ShortNumbers(self.inner.fork())
        twin._run, twin._quoted, twin._escaped = self._run, self._quoted, self._escaped
        return twin


class GuardedMarks:
    """Calls in which a text's grammar may take in the "</" that ends the text: the marker waits for it."""

    def __init__(self, inner: Matched, dsml: int) -> None:
        self.inner, self.dsml = inner, dsml
        self._since = b""  # the text since the last marker: its beginning and its end

    @property
    def finished(self) -> bool:
        return self.inner.finished

    def mask(self, size: int) -> Mask:
        mask = self.inner.mask(size)
        if self._waits:
            mask[self.dsml] = False
        return mask

    @property
    def _waits(self) -> bool:
        return self._since.startswith(_ARGUMENT) and not self._since.endswith(b"</")

    def accept(self, token: int) -> None:
        if token == self.dsml and self._waits:
            raise InputError("the marker may not follow here, expected </ before it")
        self.inner.accept(token)
        since = b"" if token == self.dsml else self._since + self.inner.vocabulary.text(token)
        self._since = since if len(since) < 2 * len(_ARGUMENT) else since[: len(_ARGUMENT)] + since[-2:]

    def fork(self) -> GuardedMarks:
        twin = GuardedMarks(self.inner.fork(), self.dsml)
        twin._since = self._since
        return twin


class TextThenCalls:
    """Free text; a `<` and the marker begin a block of tool calls, which follows its grammar to the end."""

    def __init__(self, vocabulary: Vocabulary, dsml: int, block: Constraint) -> None:
        self.vocabulary, self.dsml, self.block = vocabulary, dsml, block
        self.calling = False
        self._opened = False  # the text ends with "<"

    @property
    def finished(self) -> bool:
        return self.calling and self.block.finished

    def mask(self, size: int) -> Mask | None:
        if self.calling:
            return self.block.mask(size)
        if self._opened:
            return None
        mask = np.ones(size, np.bool_)
        mask[self.dsml] = False
        return mask

    def accept(self, token: int) -> None:
        if self.calling:
            self.block.accept(token)
        elif token == self.dsml:
            if not self._opened:
                raise InputError("the marker of tool calls may not follow here, expected a < before it")
            self.calling = True
        else:
            self._opened = self.vocabulary.text(token).endswith(b"<")

    def fork(self) -> TextThenCalls:
        twin = TextThenCalls(self.vocabulary, self.dsml, self.block.fork())
        twin.calling, twin._opened = self.calling, self._opened
        return twin


def first_line(message: str) -> str:
    """The first line that says something."""
    return next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
