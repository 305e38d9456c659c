"""Tools as clients declare them -> what the library takes, and what the model must do with them."""

from __future__ import annotations

import json
from typing import Any

from dsv4_mlx.server.api_errors import invalid
from dsv4_mlx.server.protocols.fields import Body
from dsv4_mlx.server.protocols.request import ToolOptions


def with_schema(function: Body, key: str) -> Body:
    """A function whose schema is missing, empty or untyped takes an object: clients leave that out."""
    schema = function.get(key)
    if schema is None or schema == {}:
        return {**function, key: {"type": "object", "properties": {}}}
    if isinstance(schema, dict) and "type" not in schema:
        return {**function, key: {"type": "object", **schema}}
    return function


def chosen(
    choice: Any, functions: list[Body], *, one: bool = False, param: str = "tool_choice"
) -> ToolOptions:
    """tool_choice in any protocol's words -> ToolOptions. Raises ApiError 400.

    `functions`: name, parameters and strict of each function, named as the model sees it.
    """
    offered = [function["name"] for function in functions]
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "allowed_tools" and isinstance(choice, dict):
        inner = choice.get("allowed_tools")
        kind = (inner if isinstance(inner, dict) else choice).get("mode", "auto")
    must: str | None = None
    if kind in ("required", "any"):
        must = ""
    elif kind in ("function", "tool", "custom") and isinstance(choice, dict):
        named = choice.get("function")
        must = named.get("name") if isinstance(named, dict) else choice.get("name")
        if must not in offered:
            raise invalid(f"{param} names {str(must)[:80]!r}, which is not among the tools", param)
    elif isinstance(choice, str) and kind not in ("auto", "none"):
        raise invalid(f"{param} is {choice[:40]!r}, expected auto, none, required or a named tool", param)
    elif choice is not None and not isinstance(choice, str | dict):
        raise invalid(f"{param} is {choice!r}, expected a string or an object", param)
    if kind == "none" or not offered:
        if must is not None:
            raise invalid(f"{param} asks for a tool call, but there are no tools", param)
        return ToolOptions()
    declared = [{"type": "function", "function": function} for function in functions]
    return ToolOptions(json.dumps(declared, ensure_ascii=False), True, must, one)


def rendered(function: Body) -> Body:
    """A function as the library gets it: without `strict`, of which it takes a few schemas only.

    What a strict function is promised is kept by a grammar (Tools.declared).
    """
    return {name: value for name, value in function.items() if name != "strict"}


def arguments_text(given: Any) -> str:
    """A call's arguments as JSON text: some clients send the object itself."""
    if given is None:
        return "{}"
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
