"""Tools -> the grammar of a block of calls, in the model's own markup (docs/model.md 5.3).

    \\n\\n<M tool_calls>\\n<M invoke name="NAME">\\n
    <M parameter name="KEY" string="true">text</M parameter>\\n
    <M parameter name="KEY" string="false">JSON</M parameter>\\n</M invoke>\\n</M tool_calls>

M is one token that no text can spell, so text ends where a `</` is followed by it and needs no escapes. A
name can't be escaped either: one that would break the markup or the JSON made from it is never allowed.
Arguments come in any order, each once.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.rules import Json, Regex, ToolCalls
from dsv4_mlx.grammar.schema import Node, Schema, parse

TOOLS = 512
UNIQUE = 60  # arguments of one tool that can be kept apart: the grammar counts them in 64 bits
# One space at most between tokens of JSON: a model that is not sure would fill an answer with blanks.
WHITESPACE = r"\x20"

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
# The vendor's parser ends a name at white space, and writes it into JSON as it is.
_KEY = re.compile(r'[^"\\<>\s\x00-\x1f\x7f]{1,256}')
_ANY_KEY = r'/[^"\\<>\s\x00-\x1f\x7f]{1,64}/'

# Without arguments: the vendor's library writes no line for them, the checkpoint's own encoder an empty one.
NOTHING = '"" | NL'

DEFINITION = 64 * 1024  # characters of a custom tool's grammar
_SPELT = re.compile(
    r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/|//[^\n]*'
)  # strings, patterns and remarks of lark
_SPECIAL = re.compile(r"<[\[|A-Za-z]")  # tokens by number or name

_COMMON = r"""
NL: "\n"
TEXT: /(?s:.*)<\//
value: "true\">" TEXT | "false\">" any_json "</"
"""


class CallBlock:
    """The grammar's text. `begin` (from the first newline) and `inside` (after the first marker)."""

    def __init__(self, rule: ToolCalls, marker: int) -> None:
        """Raises InputError."""
        self._m = f"<[{marker}]>"
        tools = _tools(rule)
        lines = [_COMMON, f"any_json: {json_rule(True)}"]
        calls = [self._tool(f"t{i}", tool, lines) for i, tool in enumerate(tools)]
        lines.append(f'call: "<" {self._m} "invoke name=\\"" ({" | ".join(calls)}) "</" {self._m} "invoke>"')
        more = "(NL call)*" if rule.parallel else ""
        lines.append(f'block: "tool_calls>" NL call {more} NL "</" {self._m} "tool_calls>"')
        self.inside = "\n".join(["start: block", *lines])
        start = f'begun: "\\n\\n<" {self._m} block'
        other = "" if rule.content is None else f" | {_content(rule.content)}"
        self.begin = "\n".join([f"start: begun{other}", start, *lines])

    def _tool(self, rule: str, tool: dict[str, Any], lines: list[str]) -> str:
        """Add one tool's rules; the name of the first."""
        name, strict = tool["name"], tool.get("strict") is True
        arguments, required, free = self._arguments(rule, tool, strict, lines)
        head = _literal(f'{name}">')
        if not arguments:
            more = "" if free is None else f" | ({free} NL)+"
            lines.append(f"{rule}: {head} NL ({NOTHING}{more})")
            return rule
        lines.append(f"{rule}: {head} NL {rule}_p::0x0")
        first = [f"{a} NL {rule}_r::set_bit({i})" for i, a in enumerate(arguments)]
        again = [f"{one} %if bit_clear({i})" for i, one in enumerate(first)]
        if free is not None:
            first, again = [*first, f"{free} NL {rule}_r::_"], [*again, f"{free} NL {rule}_r::_"]
        nothing = [] if required else [NOTHING]
        end = f'"" %if is_ones([0:{required}])' if required else '""'
        lines.append(f"{rule}_p::_: " + "\n  | ".join([*nothing, *first]))
        lines.append(f"{rule}_r::_: " + "\n  | ".join([end, *again]))
        return rule

    def _arguments(
        self, rule: str, tool: dict[str, Any], strict: bool, lines: list[str]
    ) -> tuple[list[str], int, str | None]:
        """Rules of the listed arguments, those required first, how many are; the rule of unlisted ones."""
        where = f"the parameters of tool {tool['name']!r}"
        found = tool.get("parameters")
        schema = Schema({} if found is None else found, strict=strict, where=where)
        if strict:
            node = _object(schema, where)
        else:
            listed = found.get("properties") if isinstance(found, dict) else None
            node = {"properties": listed if isinstance(listed, dict) else {}, "required": []}
            node["additionalProperties"] = _leaves_open(found)
        keys = list(node["properties"])
        if not strict:
            keys = [key for key in keys if _KEY.fullmatch(key)]
        required = [key for key in node["required"] if key in keys]
        keys = [*required, *(key for key in keys if key not in required)]
        if len(keys) > UNIQUE:
            if strict:
                raise InputError(f"{where} are {len(keys)}, expected at most {UNIQUE} with strict")
            keys, node["additionalProperties"] = [], True
        names = []
        for i, key in enumerate(keys):
            names.append(argument := f"{rule}_{i}")
            if tool.get("grammar") is not None:
                value = _custom(argument, tool, lines)
            else:
                value = self._value(argument, schema, node["properties"][key], lines) if strict else "value"
            head = _literal(f'{key}" string="')
            lines.append(f"{argument}: {self._open()} {head} {value} {self._close()}")
        if node["additionalProperties"] is False:
            return names, len(required), None
        free, excluded = f"{rule}_x", " | ".join(_literal(key) for key in keys)
        value = "value"
        if strict:
            value = self._value(free, schema, node["additionalProperties"], lines)
        lines.append(f"{free.upper()}: {_ANY_KEY}" + (f" & ~({excluded})" if excluded else ""))
        lines.append(f'{free}: {self._open()} {free.upper()} "\\" string=\\"" {value} {self._close()}')
        return names, len(required), free

    def _open(self) -> str:
        return f'"<" {self._m} "parameter name=\\""'

    def _close(self) -> str:
        return f'{self._m} "parameter>"'

    def _value(self, rule: str, schema: Schema, node: Node, lines: list[str]) -> str:
        """Add the rules of a value of `node`; the name of the first."""
        texts, others = _forms(node)
        options = []
        for i, text in enumerate(texts):
            if text != "TEXT":
                lines.append(f"{rule.upper()}_T{i}: {text}")
                text = f"{rule.upper()}_T{i}"
            options.append(f'"true\\">" {text}')
        if others:
            lines.append(
                f"{rule}_j: {json_rule(schema.whole({'anyOf': others} if len(others) > 1 else others[0]))}"
            )
            options.append(f'"false\\">" {rule}_j "</"')
        else:
            schema.whole(True)
        lines.append(f"{rule}_v: " + " | ".join(options))
        return f"{rule}_v"


def _custom(rule: str, tool: dict[str, Any], lines: list[str]) -> str:
    """Add the rules of the text of a custom tool; the name of the first. Raises InputError."""
    definition, syntax = tool["grammar"]["definition"], tool["grammar"]["syntax"]
    if len(definition) > DEFINITION:
        raise InputError(
            f"the grammar of tool {tool['name']!r} has {len(definition)} characters, "
            f"expected at most {DEFINITION}"
        )
    alone = f"start: {regex_rule(definition)}" if syntax == "regex" else definition
    error = LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(alone))  # it can't end what it stands in
    if error and not error.startswith("WARNING"):
        raise InputError(
            f"the grammar of tool {tool['name']!r} is no {syntax} grammar: {error.strip()[:200]}"
        )
    if syntax == "regex":
        lines.append(rf"{rule.upper()}_G: /(?:{regex_to_lark(definition, 'd')})<\//")
        lines.append(f'{rule}_v: "true\\">" {rule.upper()}_G')
        return f"{rule}_v"
    if _SPECIAL.search(_SPELT.sub("", definition)):
        raise InputError(f"the grammar of tool {tool['name']!r} names tokens, expected text only")
    lines.append(f"{rule}_g: %lark {{\n{definition}\n}}")
    # A last terminal that takes any character takes the end mark too: GuardedMarks sees that it comes.
    lines.append(f'{rule}_v: "true\\">" {rule}_g "</"?')
    return f"{rule}_v"


def json_rule(node: Node) -> str:
    """A rule's body: JSON of a rewritten schema."""
    document = {"anyOf": [node]} if isinstance(node, bool) else node
    return "%json " + json.dumps({"x-guidance": {"whitespace_pattern": WHITESPACE}, **document})


def regex_rule(pattern: str) -> str:
    """A rule's body: text that matches the whole pattern. `\\d` is 0 to 9. Raises InputError."""
    if (len(pattern) - len(pattern.rstrip("\\"))) % 2:  # llguidance would leave it out
        raise InputError("the pattern is no regex grammar: it ends within an escape")
    return f"/{regex_to_lark(pattern, 'd')}/"


def json_node(rule: Json) -> Node:
    """The rewritten schema of a rule. Raises InputError."""
    if not rule.schema.strip():
        return {"type": "object"}
    schema = Schema(parse(rule.schema), strict=rule.strict)
    return schema.whole(schema.node(schema.document))


def _content(rule: Json | Regex) -> str:
    if isinstance(rule, Regex):
        return regex_rule(rule.pattern)
    return json_rule(json_node(rule))


def _tools(rule: ToolCalls) -> list[dict[str, Any]]:
    """The functions of the rule's tools, checked. Raises InputError."""
    document = parse(rule.tools, "the list of tools")
    if not isinstance(document, list):
        raise InputError("the tools are no list")
    if not 0 < len(document) <= TOOLS:
        raise InputError(f"there are {len(document)} tools, expected 1 to {TOOLS}")
    functions: dict[str, dict[str, Any]] = {}
    for i, tool in enumerate(document):
        function = tool.get("function") if isinstance(tool, dict) else None
        function = function if isinstance(function, dict) else {}
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InputError(f"tool {i} has the name {name!r}, expected 1 to 128 of A-Z a-z 0-9 _ . : / -")
        if name in functions:
            raise InputError(f"two tools have the name {name!r}")
        functions[name] = function
    if rule.name is None:
        return list(functions.values())
    if rule.name not in functions:
        raise InputError(f"there is no tool {rule.name!r} to call", next="name one of the tools given")
    return [functions[rule.name]]


def _object(schema: Schema, where: str) -> dict[str, Any]:
    """The root of a strict tool's parameters: an object whose arguments can be listed. Raises InputError."""
    place = schema.document
    for _ in range(8):
        if not (
            isinstance(place, dict)
            and isinstance(place.get("$ref"), str)
            and set(place) <= {"$ref", "$defs", "definitions"}
        ):
            break
        place = schema.at(place["$ref"])
    node = schema.node(place)
    plain = {"type", "properties", "required", "additionalProperties"}
    if isinstance(node, bool) or not set(node) <= plain or node.get("type", "object") != "object":
        raise InputError(f"{where} can't be enforced: expected an object with properties, and nothing beside")
    node = {"properties": {}, "required": [], "additionalProperties": True, **node}
    for key in [*node["properties"], *node["required"]]:
        if not _KEY.fullmatch(key):
            raise InputError(f"{where} can't be enforced: the name {key!r} can't be said in a call")
    for key in node["required"]:
        node["properties"].setdefault(key, node["additionalProperties"])
    return node


def _leaves_open(parameters: Any) -> bool:
    """Whether a tool that is not strict takes arguments it does not list."""
    if not isinstance(parameters, dict) or not isinstance(parameters.get("properties"), dict):
        return True
    says = parameters.get("additionalProperties", False) is not False
    return says or any(key in parameters for key in ("patternProperties", "anyOf", "oneOf", "allOf", "$ref"))


def _forms(node: Node) -> tuple[list[str], list[Node]]:
    """How values of `node` are written: terminals of plain text, closing `</` included, and JSON."""
    if isinstance(node, bool):
        return (["TEXT"], [True]) if node else ([], [False])
    keys, kind = set(node), node.get("type")
    if keys == {"anyOf"}:
        parts = [_forms(option) for option in node["anyOf"]]
        return [t for texts, _ in parts for t in texts], [o for _, others in parts for o in others]
    if keys == {"type"} and isinstance(kind, list) and "string" in kind:
        others = [one for one in kind if one != "string"]
        return ["TEXT"], [{"type": others}] if others else []
    if not keys:
        return ["TEXT"], [True]
    words: Any = node.get("enum", [node["const"]] if "const" in node else None)
    if keys <= {"type", "enum", "const"} and kind in (None, "string") and _texts(words):
        return [f'({" | ".join(_literal(word) for word in words)}) "</"'], []
    if kind == "string" and keys <= {"type", "minLength", "maxLength"}:
        least, most = node.get("minLength", 0), node.get("maxLength", "")
        return (["TEXT"] if keys == {"type"} else [rf"/(?s:.{{{least},{most}}})<\//"]), []
    return [], [node]


def _texts(words: Any) -> bool:
    return isinstance(words, list) and bool(words) and all(isinstance(word, str) for word in words)


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
