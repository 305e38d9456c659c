"""Model turns written down: one JSON object a line, for `serve --replay`.

reasoning           text of the thinking
content             text of the answer
tool_calls          [{"name": ..., "arguments": {...}}]
raw                 instead of the three: exact text after the prompt, markers in it are markers
finish              "stop" (default) or "length"
tokens_per_second   0 (default): as fast as possible
error               the turn fails with this message after what it said
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from dsv4_mlx.errors import InputError

KEYS = frozenset(("reasoning", "content", "tool_calls", "raw", "finish", "tokens_per_second", "error"))
SPOKEN = ("reasoning", "content", "tool_calls")


@dataclass(frozen=True)
class ScriptedCall:
    """`arguments`: JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ScriptedTurn:
    """One line. `where` names it for messages."""

    where: str
    reasoning: str = ""
    content: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    raw: str | None = None
    finish: Literal["stop", "length"] = "stop"
    tokens_per_second: float = 0.0
    error: str | None = None


def read_script(path: Path) -> list[ScriptedTurn]:
    """The turns of a file, at least one; empty lines are skipped. Raises InputError, naming the line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"the replay file can't be read: {error.strerror}", where=path) from None
    turns = [_turn(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not turns:
        raise InputError("the replay file has no turns", where=path, next="write one JSON object a line")
    return turns


def _turn(line: bytes, where: str) -> ScriptedTurn:
    def wrong(found: str, expected: str) -> NoReturn:
        raise InputError(f"{found}, expected {expected}", where=where)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            wrong("a key comes twice", "each once")
        return found

    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError:
        wrong("the line is not UTF-8", "JSON text")
    except (ValueError, RecursionError) as error:
        wrong(f"the line is not JSON ({error})", "one object")
    if not isinstance(value, dict):
        wrong(f"the line is a JSON {type(value).__name__}", "an object")
    unknown = sorted(value.keys() - KEYS)
    if unknown:
        wrong(f"there is a key {unknown[0]!r}", f"only {', '.join(sorted(KEYS))}")
    for key in ("reasoning", "content", "raw", "error"):
        if key in value and not _is_text(value[key]):
            wrong(f"{key} is no text", "a string of Unicode characters")
    if "raw" in value and any(key in value for key in SPOKEN):
        wrong("there is raw and more", f"raw alone, or {', '.join(SPOKEN)}")
    if not any(key in value for key in ("raw", "error", *SPOKEN)):
        wrong("the turn says nothing", "one of reasoning, content, tool_calls, raw, error")
    if value.get("finish", "stop") not in ("stop", "length"):
        wrong(f"finish is {value['finish']!r}", "stop or length")
    speed = value.get("tokens_per_second", 0)
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not (0 <= speed < math.inf):
        wrong(f"tokens_per_second is {speed!r}", "0 or a positive number")
    calls = value.get("tool_calls", [])
    if not isinstance(calls, list):
        wrong("tool_calls is no list", "[{name, arguments}]")
    return ScriptedTurn(
        where=where,
        reasoning=value.get("reasoning", ""),
        content=value.get("content", ""),
        calls=tuple(_call(call, wrong) for call in calls),
        raw=value.get("raw"),
        finish=value.get("finish", "stop"),
        tokens_per_second=float(speed),
        error=value.get("error"),
    )


def _call(call: Any, wrong: Any) -> ScriptedCall:
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        wrong("a tool call is not {name, arguments}", "these two keys")
    if not isinstance(call["name"], str) or not call["name"] or not _is_text(call["name"]):
        wrong("the name of a tool call is no text", "a string")
    if not isinstance(call["arguments"], dict):
        wrong(f"the arguments of {call['name']!r} are no object", "a JSON object")
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    if not _is_text(arguments):
        wrong(f"the arguments of {call['name']!r} hold no text", "Unicode characters")
    return ScriptedCall(call["name"], arguments)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
