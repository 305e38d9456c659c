"""Values of a JSON body, by the type they must have. Everything here raises ApiError 400 with `param`.

The bytes of a request -> a JSON object that nothing behind it has to fear.
"""

from __future__ import annotations

import json
import json.decoder
import json.scanner
from typing import Any, NoReturn

from dsv4_mlx.server.api_errors import ApiError, invalid, unsupported
from dsv4_mlx.server.options import ServerLimits

Body = dict[str, Any]
MOST = 1 << 31
PIECE = 1 << 16  # bytes or characters that one call works on: other threads wait for it


def parse(raw: bytes | bytearray, limits: ServerLimits) -> Body:
    """A JSON object with finite numbers, bounded depth and whole characters. Nulls at its top are left out.

    A lone surrogate becomes U+FFFD: no tokenizer can take it, and clients cut strings in the middle of an
    emoji. Of a name given twice the last counts. A bytearray is empty
    afterwards. Other threads run meanwhile, however long it is. Raises ApiError 400, 413.
    """
    _check_structure(raw, limits)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(
            f"the body is not UTF-8: byte {error.start} can't be read", code="invalid_json"
        ) from None
    length = len(raw)
    if isinstance(raw, bytearray):
        raw.clear()  # its memory is needed for what is made of it
    try:
        kind = _Pieces if length > limits.large else json.JSONDecoder
        value = kind(parse_constant=_constant, parse_float=_float, parse_int=_int).decode(text)
    except RecursionError:
        raise _too_deep(limits) from None
    except json.JSONDecodeError as error:
        raise invalid(
            f"the body is not JSON: {error.msg} at character {error.pos}", code="invalid_json"
        ) from None
    if not isinstance(value, dict):
        raise invalid(f"the body is {_kind(value)}, expected a JSON object")
    _check_depth(value, limits)
    if "\\u" in text:
        value = _whole(value)
    return {name: given for name, given in value.items() if given is not None}


class _Pieces(json.JSONDecoder):
    """The standard library's decoder in Python, but for strings: those in C, a piece at a time."""

    def __init__(self, **hooks: Any) -> None:
        super().__init__(**hooks)
        self.parse_string = _string
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def _string(text: str, begin: int, strict: bool = True) -> tuple[str, int]:
    """As json.decoder.scanstring; halves of a character, where a piece ends between them, `_whole` joins."""
    found: list[str] = []
    while begin < len(text):
        piece = text[begin : begin + PIECE]
        if begin + PIECE < len(text):
            piece = piece[: _before_escape(piece)]
        try:
            value, end = json.decoder.scanstring(f'{piece}"', 0, strict)  # type: ignore[attr-defined]
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, begin + error.pos) from None
        found.append(value)
        if end <= len(piece):
            return "".join(found), begin + end
        begin += len(piece)
    raise json.JSONDecodeError("Unterminated string", text, begin)


def _before_escape(piece: str) -> int:
    """Characters of a piece up to the escape that its end cuts."""
    at = piece.rfind("\\", len(piece) - 5)
    head = piece[: at + 1]
    if at < 0 or not (len(head) - len(head.rstrip("\\"))) % 2:
        return len(piece)
    return at if at + (6 if piece[at + 1 : at + 2] == "u" else 2) > len(piece) else len(piece)


def _check_structure(raw: bytes | bytearray, limits: ServerLimits) -> None:
    """Counted before anything is made of it. Pieces end where no escape is cut."""
    count, outside, begin = 0, True, 0
    while begin < len(raw):
        piece = bytes(raw[begin : begin + PIECE])
        if begin + PIECE < len(raw) and (len(piece) - len(piece.rstrip(b"\\"))) % 2:
            piece = piece[:-1]
        begin += len(piece)
        parts = piece.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
        bare = b"".join(parts[0 if outside else 1 :: 2])
        outside = outside == (len(parts) % 2 == 1)
        count += bare.count(b",") + bare.count(b"[") + bare.count(b"{")
        if count > limits.structure:
            raise ApiError(
                413,
                "request_too_large",
                f"the body has more than {limits.structure} values (`,`, `[` and `{{` outside strings)",
            )


def _check_depth(value: object, limits: ServerLimits) -> None:
    level = [value]
    for _ in range(limits.depth):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return
    raise _too_deep(limits)


def _inner(value: object) -> list[Any]:
    held = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [inner for inner in held if isinstance(inner, dict | list)]


def _too_deep(limits: ServerLimits) -> ApiError:
    return invalid(f"the body is nested deeper than {limits.depth} levels")


def _whole(value: Any) -> Any:
    """`value` without lone surrogates."""
    if isinstance(value, str):
        return (
            value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        )
    if isinstance(value, list):
        return [_whole(one) for one in value]
    if isinstance(value, dict):
        return {_whole(name): _whole(one) for name, one in value.items()}
    return value


def _constant(text: str) -> NoReturn:
    raise invalid(f"the body holds the number {text}, which JSON has not")


def _float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise invalid(f"the body holds a number too large: {text[:40]}")
    return number


def _int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) >= 2**64:
        raise invalid(f"the body holds a number too large: {text[:40]}")
    return int(text)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def number(body: Body, name: str, low: float, high: float, default: float) -> float:
    value = body.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"{name} is {_shown(value)}, expected a number", name)
    if not low <= value <= high:
        raise invalid(f"{name} is {value}, expected {low:g} to {high:g}", name)
    return float(value)


def whole(body: Body, name: str, low: int, high: int, default: int | None = None) -> int | None:
    value = body.get(name, default)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise invalid(f"{name} is {_shown(value)}, expected a whole number", name)
    if not low <= value <= high:
        raise invalid(f"{name} is {value}, expected {low} to {high}", name)
    return value


def flag(body: Body, name: str, default: bool = False) -> bool:
    value = body.get(name, default)
    if not isinstance(value, bool):
        raise invalid(f"{name} is {_shown(value)}, expected true or false", name)
    return value


def text(body: Body, name: str, default: str = "") -> str:
    value = body.get(name, default)
    if not isinstance(value, str):
        raise invalid(f"{name} is {_shown(value)}, expected a string", name)
    return value


def object_of(body: Body, name: str) -> Body:
    """An object, or an empty one where it is absent."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{name} is {_shown(value)}, expected an object", name)
    return value


def objects_of(body: Body, name: str, most: int) -> list[Body]:
    """A list of objects without their nulls, or an empty one where it is absent."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise invalid(f"{name} is {_shown(value)}, expected an array of objects", name)
    if len(value) > most:
        raise invalid(f"{name} has {len(value)} entries, expected at most {most}", name)
    return [{key: given for key, given in one.items() if given is not None} for one in value]


def stops(body: Body, name: str, limits: ServerLimits) -> list[str]:
    """Stop strings: one, or a list of them; empty ones are left out."""
    value = body.get(name, [])
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not all(isinstance(one, str) for one in given):
        raise invalid(f"{name} is {_shown(value)}, expected a string or an array of strings", name)
    if len(given) > limits.stops:
        raise invalid(f"{name} has {len(given)} entries, expected at most {limits.stops}", name)
    if any(len(one) > limits.stop_length for one in given):
        raise invalid(f"{name} holds a string longer than {limits.stop_length} characters", name)
    return [one for one in given if one]


def one_choice(body: Body) -> None:
    """Raises ApiError 400 for more than one answer at once."""
    for name in ("n", "best_of"):
        if (whole(body, name, 0, MOST) or 1) != 1:
            raise unsupported(f"{name} is {body[name]}: one answer at a time", name)


def most_tokens(body: Body, *names: str) -> int | None:
    """The least of the limits given; None for what the context leaves. Raises ApiError 400 below 1."""
    given = [whole(body, name, 1, 1 << 53) for name in names]
    return min((value for value in given if value is not None), default=None)


def logprobs_of(body: Body) -> int | None:
    """How many alternatives beside each token; None for no log probabilities."""
    asked, top = flag(body, "logprobs"), whole(body, "top_logprobs", 0, 20)
    if top and not asked:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if asked else None


def _shown(value: Any) -> str:
    return repr(value)[:60]
