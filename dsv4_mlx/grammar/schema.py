"""A JSON Schema as it came -> the part of draft 2020-12 that is enforced, and nothing that is not.

Annotations and unknown keywords mean nothing (JSON Schema, core 4.3.1) and are dropped; so are formats that
have no grammar here, since a format is an annotation (validation 7.2.1). Older forms are rewritten. A keyword
that restricts the value and can't be enforced is refused.

Narrower than the letter: properties come in the schema's order, those of `additionalProperties` and
`patternProperties` last; no leap seconds; no escapes in strings but the short ones and controls.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn
from urllib.parse import unquote

from dsv4_mlx.errors import InputError

SIZE = 256 * 1024  # characters of a schema
DEPTH = 64  # of one schema in another
NODES = 20_000  # schemas in a schema
LEAST = 10_000  # the largest lower bound on a length or count: more would not fit an answer
EXACT = 2**53  # beyond it a bound is no longer the number that was written
FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"})  # llguidance's

# RFC 3339, 5.6 and 5.7; a year is a leap year if 4 divides it, and 100 does not or 400 does.
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DAYS = (
    "[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    f"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_CLOCK}:[0-5][0-9](?:[.][0-9]{{1,9}})?(?:[zZ]|[+-]{_CLOCK})"
PATTERNS = {
    "date": f"^(?:{_DAYS})$",
    "time": f"^{_TIME}$",
    "date-time": f"^(?:{_DAYS})[tT]{_TIME}$",
}

_VALUES = frozenset({"type", "const", "enum", "pattern", "required"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_MAPS = frozenset({"properties", "patternProperties"})
_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_SCHEMAS = frozenset({"items", "additionalProperties"})
_IN_PLACE = ("anyOf", "oneOf", "allOf", "$ref", "if")

Node = dict[str, Any] | bool


class Schema:
    """One document. `node` reads a place in it; what that refers to gathers in the definitions.

    strict: objects that list properties have all of these and no others, unless the schema says which.
    """

    def __init__(self, document: Any, *, strict: bool = False, where: str = "the schema") -> None:
        self.document, self.strict, self.where = document, strict, where
        self._names: dict[str, str] = {}  # a reference -> its definition's name
        self._definitions: dict[str, Node] = {}
        self._unread: list[tuple[str, str]] = []  # references named and not yet followed
        self._nodes = 0
        base = document.get("$id") if isinstance(document, dict) else None
        self._base = base.rstrip("#") if isinstance(base, str) else ""

    def node(self, found: Any, path: str = "#", depth: int = 0) -> Node:
        """The schema at a place, rewritten. Raises InputError."""
        self._nodes += 1
        if depth > DEPTH or self._nodes > NODES:
            self._refuse(path, f"more than {DEPTH if depth > DEPTH else NODES} schemas", "a smaller schema")
        if isinstance(found, bool):
            return found
        if not isinstance(found, dict):
            self._refuse(path, f"{_short(found)} is no schema", "an object, true or false")
        _refuse_unenforced(found, path, self._refuse)
        out: dict[str, Any] = {}
        for key, value in found.items():
            at = f"{path}/{key}"
            if key in _VALUES:
                out[key] = value
            elif key in _COUNTS:
                out[key] = self._count(value, at, key.startswith("min"))
            elif key in _BOUNDS:
                self._bound(out, found, key, value, at)
            elif key in _MAPS:
                self._require(value, dict, at)
                out[key] = {name: self.node(sub, f"{at}/{name}", depth + 1) for name, sub in value.items()}
            elif key in _LISTS:
                self._require(value, list, at)
                nodes = [self.node(sub, f"{at}/{i}", depth + 1) for i, sub in enumerate(value)]
                out[key] = [*out.get(key, []), *nodes]
            elif key == "items" and isinstance(value, list):  # drafts before 2020-12
                out["prefixItems"] = [self.node(sub, f"{at}/{i}", depth + 1) for i, sub in enumerate(value)]
                if "additionalItems" in found:
                    out["items"] = self.node(found["additionalItems"], f"{path}/additionalItems", depth + 1)
            elif key in _SCHEMAS:
                out[key] = self.node(value, at, depth + 1)
            elif key == "format" and isinstance(value, str) and value in FORMATS:
                out[key] = value
            elif key == "format" and isinstance(value, str) and value in PATTERNS:
                out.setdefault("allOf", []).append({"pattern": PATTERNS[value]})
            elif key == "$ref":
                out[key] = f"#/$defs/{self._definition(value, at)}"
            elif key == "unevaluatedProperties" and value is False:
                out.setdefault("additionalProperties", False)  # without in-place schemas the same
        if self.strict and "properties" in out:
            out.setdefault("additionalProperties", False)
            out["required"] = list(out["properties"])
        self._check_keys(out, path)
        return out

    def whole(self, node: Node) -> Node:
        """A rewritten node with the definitions it may refer to. Raises InputError for an endless one."""
        while self._unread:
            pointer, path = self._unread.pop()
            self._definitions[self._names[pointer]] = self.node(self.at(pointer, path), pointer)
        endless = self._endless()
        if endless is not None:
            self._refuse(endless, "every value of it holds another of its own kind", "one that can end")
        if isinstance(node, bool) or not self._definitions:
            return node
        return {"$defs": self._definitions, **node}

    def at(self, reference: Any, path: str = "#") -> Any:
        """What a reference refers to, as it came. Raises InputError."""
        place = self.document
        for part in self._pointer(reference, path).split("/")[1:]:
            part = unquote(part).replace("~1", "/").replace("~0", "~")
            try:
                place = place[int(part)] if isinstance(place, list) else place[part]
            except (KeyError, IndexError, ValueError, TypeError):
                self._refuse(path, f"{_short(reference)} names no place in it", "one that is there")
        return place

    def _pointer(self, reference: Any, path: str) -> str:
        self._require(reference, str, path)
        pointer: str = reference.removeprefix(self._base) if self._base else reference
        if not (pointer == "#" or pointer.startswith("#/")):
            self._refuse(path, f"{_short(reference)} is outside of this schema", "a reference from #/")
        return pointer

    def _definition(self, reference: Any, path: str) -> str:
        pointer = self._pointer(reference, path)
        if pointer not in self._names:
            self._names[pointer] = f"r{len(self._names)}"
            self._unread.append((pointer, path))
        return self._names[pointer]

    def _endless(self) -> str | None:
        """A reference whose every value would be infinite, if there is one."""
        ending: set[str] = set()
        grown = True
        while grown:
            new = {n for n, node in self._definitions.items() if n not in ending and _ends(node, ending)}
            ending |= new
            grown = bool(new)
        return next((pointer for pointer, name in self._names.items() if name not in ending), None)

    def _count(self, value: Any, path: str, least: bool) -> int:
        whole = isinstance(value, (int, float)) and not isinstance(value, bool) and float(value).is_integer()
        if not whole or value < 0:
            self._refuse(path, f"{_short(value)} is no count", "a whole number from 0")
        if least and value > LEAST:
            self._refuse(path, f"{_short(value)} is more than an answer holds", f"up to {LEAST}")
        return int(value)

    def _bound(self, out: dict[str, Any], found: dict[str, Any], key: str, value: Any, path: str) -> None:
        if key.startswith("exclusive") and isinstance(value, bool):  # draft 4: it qualifies the other bound
            plain = key.removeprefix("exclusive").lower()
            if value and plain in found:
                out.pop(plain, None)
                self._bound(out, found, key, found[plain], path)
            return
        if found.get(f"exclusive{key.capitalize()}") is True:
            return
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            self._refuse(path, f"{_short(value)} is no bound", "a number")
        if abs(value) > EXACT:
            self._refuse(path, f"{_short(value)} is too large to be kept exactly", "at most 2^53")
        out[key] = value

    def _check_keys(self, out: dict[str, Any], path: str) -> None:
        # Keys that a schema leaves open may be said twice, and would then be counted twice.
        open_keys = out.get("minProperties", 0) - len(out.get("required", ()))
        if open_keys > 1 and (out.get("additionalProperties", True) or out.get("patternProperties")):
            self._refuse(f"{path}/minProperties", "distinct keys can't be enforced", "required properties")

    def _require(self, value: Any, kind: type, path: str) -> None:
        if not isinstance(value, kind):
            names = {"dict": "an object", "list": "a list", "str": "text"}
            self._refuse(path, f"{_short(value)} is there", names[kind.__name__])

    def _refuse(self, path: str, found: str, expected: str) -> NoReturn:
        raise InputError(f"{self.where} can't be enforced: at {path}: {found}, expected {expected}")


def parse(text: str, where: str = "the schema") -> Any:
    """JSON text, within limits. Raises InputError."""
    if len(text) > SIZE:
        raise InputError(f"{where} has {len(text)} characters, expected at most {SIZE}")

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no JSON")

    try:
        document = json.loads(text, parse_constant=refuse)
        json.dumps(document, allow_nan=False).encode()  # a number like 1e999 is read as infinity
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from None
    return document


def _refuse_unenforced(found: dict[str, Any], path: str, refuse: Any) -> None:
    def harmless(key: str, value: Any) -> bool:
        match key:
            case "if":
                return "then" not in found and "else" not in found
            case "then" | "else":
                return "if" not in found
            case "minContains" | "maxContains":
                return "contains" not in found
            case "uniqueItems":
                return value is False
            case "dependentRequired" | "dependentSchemas" | "dependencies":
                return bool(value == {})
            case "propertyNames":
                return value in (True, {}, {"type": "string"})
            case "unevaluatedItems":
                return value in (True, {})
            case "unevaluatedProperties":
                alone = not any(other in found for other in _IN_PLACE)
                return value in (True, {}) or (value is False and alone)
            case "$id":
                return path == "#"
            case "not" | "contains" | "$dynamicRef" | "$recursiveRef":
                return False
            case _:
                return True

    for key, value in found.items():
        if not harmless(key, value):
            refuse(path, f"{key!r} is not enforced", "a schema without it")


def _ends(node: Node, ending: set[str]) -> bool:
    """Whether a value of `node` can be finite, given the definitions whose values can."""
    if isinstance(node, bool) or "enum" in node or "const" in node:
        return True
    if "$ref" in node and node["$ref"].removeprefix("#/$defs/") not in ending:
        return False
    if not all(_ends(sub, ending) for sub in node.get("allOf", ())):
        return False
    for key in ("anyOf", "oneOf"):
        if node.get(key) and not any(_ends(sub, ending) for sub in node[key]):
            return False
    kind = node.get("type")
    if kind in ("object", ["object"]):
        properties = node.get("properties", {})
        return all(_ends(properties.get(name, True), ending) for name in node.get("required", ()))
    if kind in ("array", ["array"]):
        least, first = node.get("minItems", 0), node.get("prefixItems", [])
        rest = least <= len(first) or _ends(node.get("items", True), ending)
        return rest and all(_ends(sub, ending) for sub in first[:least])
    return True


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
