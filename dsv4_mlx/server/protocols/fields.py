"""Values of a JSON body, by the type they must have. Everything here raises ApiError 400 with `param`.

The bytes of a request -> a JSON object that nothing behind it has to fear.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from dsv4_mlx.server.api_errors import ApiError, invalid, unsupported
from dsv4_mlx.server.options import ServerLimits

Body = dict[str, Any]
MOST = 1 << 31


def parse(raw: bytes, limits: ServerLimits) -> Body:
    """A JSON object with finite numbers, bounded depth and whole characters. Nulls at its top are left out.

    A lone surrogate becomes U+FFFD: no tokenizer can take it, and clients cut strings in the middle of an
    emoji. Of a name given twice the last counts. Raises ApiError 400.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(
            f"the body is not UTF-8: byte {error.start} can't be read", code="invalid_json"
        ) from None
    try:
        value = json.loads(text, parse_constant=_constant, parse_float=_float, parse_int=_int)
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
    """A list of objects, or an empty one where it is absent."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise invalid(f"{name} is {_shown(value)}, expected an array of objects", name)
    if len(value) > most:
        raise invalid(f"{name} has {len(value)} entries, expected at most {most}", name)
    return value


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
