"""tokenizer.json -> the tokens as grammars see them: bytes for text, and markers that no text can spell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer

from dsv4_mlx.errors import InputError

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
