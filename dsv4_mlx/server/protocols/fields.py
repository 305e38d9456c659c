"""Values of a JSON body, by the type they must have. Everything here raises Refusal 400 with `param`."""

from __future__ import annotations

from typing import Any

from dsv4_mlx.server.api_errors import invalid
from dsv4_mlx.server.options import Limits
from dsv4_mlx.server.protocols.body import Body


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


def record(body: Body, name: str) -> Body:
    """An object, or an empty one where it is absent."""
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(f"{name} is {_shown(value)}, expected an object", name)
    return value


def records(body: Body, name: str, most: int) -> list[Body]:
    """A list of objects, or an empty one where it is absent."""
    value = body.get(name, [])
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise invalid(f"{name} is {_shown(value)}, expected an array of objects", name)
    if len(value) > most:
        raise invalid(f"{name} has {len(value)} entries, expected at most {most}", name)
    return value


def stops(body: Body, name: str, limits: Limits) -> list[str]:
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


def _shown(value: Any) -> str:
    return repr(value)[:60]
