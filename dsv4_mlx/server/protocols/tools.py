"""Tools as clients declare them -> what the library takes, and what the model must do with them."""

from __future__ import annotations

import json
from typing import Any

from dsv4_mlx.server.api_errors import invalid
from dsv4_mlx.server.protocols.fields import Body, object_of, text
from dsv4_mlx.server.protocols.request import ToolOptions


def with_schema(function: Body, key: str) -> Body:
    """A function whose schema is missing, empty or untyped takes an object: clients leave that out."""
    schema = function.get(key)
    if schema is None or schema == {}:
        return {**function, key: {"type": "object", "properties": {}}}
    if isinstance(schema, dict) and "type" not in schema:
        return {**function, key: {"type": "object", **schema}}
    return function


def with_description(form: Body) -> Body:
    """A form of the answer whose description, of which the library renders none, is its schema's as well."""
    schema = form["schema"]
    said = [
        one for one in (text(form, "description"), schema.get("description")) if one and isinstance(one, str)
    ]
    return {**form, "schema": {**schema, "description": "\n".join(said)}} if said else form


def chosen(
    choice: Any, functions: list[Body], *, one: bool = False, param: str = "tool_choice"
) -> ToolOptions:
    """tool_choice in any protocol's words -> ToolOptions. Raises ApiError 400.

    `functions`: name, parameters and strict of each function, named as the model sees it.
    """
    offered = [function["name"] for function in functions]
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if kind == "allowed_tools" and isinstance(choice, dict):
        inner = choice["allowed_tools"] if isinstance(choice.get("allowed_tools"), dict) else choice
        kind = inner.get("mode", "auto")
        allowed = _allowed(inner.get("tools"), offered, param)
        functions = [function for function in functions if function["name"] in allowed]
        offered = [function["name"] for function in functions]
    must: str | None = None
    if kind in ("required", "any"):
        must = ""
    elif kind in ("function", "tool", "custom") and isinstance(choice, dict):
        named = choice.get("function", choice.get("custom"))
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
    customs = frozenset(function["name"] for function in functions if CUSTOM in function)
    return ToolOptions(json.dumps(declared, ensure_ascii=False), True, must, one, customs)


def _allowed(tools: Any, offered: list[str], param: str) -> set[str]:
    """Names of the functions that a choice of allowed tools leaves."""
    found = set()
    for tool in tools if isinstance(tools, list) else ():
        if not isinstance(tool, dict) or tool.get("type", "function") not in ("function", "custom"):
            continue  # it runs elsewhere
        inner = tool.get("function", tool.get("custom"))
        name = (inner if isinstance(inner, dict) else tool).get("name")
        if tool.get("namespace"):
            name = f"{tool['namespace']}__{name}"
        if name not in offered:
            raise invalid(f"{param} allows {str(name)[:80]!r}, which is not among the tools", param)
        found.add(name)
    if not found:
        raise invalid(f"{param} allows none of the tools that this model can call", param)
    return found


CUSTOM = "grammar"  # of a function made of a custom tool: what its text must be, or None
_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


def custom_function(tool: Body, param: str) -> Body:
    """A custom tool, whose input is text -> a function of one string. Raises ApiError 400."""
    name = text(tool, "name")
    form = object_of(tool, "format")
    kind = form.get("type", "text")
    given = object_of(form, "grammar") or form  # Chat Completions has it one level deeper
    grammar: Body | None = None
    said = text(tool, "description")
    if kind == "grammar":
        grammar = {"syntax": given.get("syntax"), "definition": given.get("definition")}
        if grammar["syntax"] not in ("lark", "regex") or not isinstance(grammar["definition"], str):
            raise invalid(f"the grammar of tool {name[:80]!r} has no lark or regex definition", param)
        said += f"\n\nThe input follows this {grammar['syntax']} grammar:\n{grammar['definition']}"
    elif kind != "text":
        raise invalid(
            f"the format of tool {name[:80]!r} is {str(kind)[:40]!r}, expected text or grammar", param
        )
    return {"name": name, "description": said.strip(), "parameters": _INPUT, "strict": True, CUSTOM: grammar}


def custom_input(arguments: str) -> str:
    """The text of a custom tool's call, from the arguments of the function made of it."""
    return str(json.loads(arguments).get("input", ""))


def rendered(function: Body) -> Body:
    """A function as the library gets it: without `strict`, of which it takes a few schemas only.

    What a strict function is promised is kept by a grammar (Tools.declared).
    """
    return {name: value for name, value in function.items() if name not in ("strict", CUSTOM)}


def arguments_text(given: Any) -> str:
    """A call's arguments as JSON text: some clients send the object itself."""
    if given is None:
        return "{}"
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
