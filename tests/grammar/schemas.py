"""Varied JSON Schemas: such as people write, and such as no one would."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

Node = dict[str, Any] | bool

# In the manner of API descriptions, pydantic and zod: the schemas by name.
WRITTEN: dict[str, Node] = json.loads((Path(__file__).parent / "written.json").read_text(encoding="utf-8"))


def generated(seed: int) -> Node:
    """A schema of what is enforced; it may have no value, or overlapping branches."""
    return _Generator(random.Random(seed)).root()


class _Generator:
    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.definitions: dict[str, Node] = {}
        self.names = ["a", "b", "key", "név", "x y", "n_1", "type"]

    def root(self) -> Node:
        node = self.node(3)
        if self.definitions and isinstance(node, dict):
            node["$defs"] = self.definitions
        return node

    def node(self, depth: int) -> Node:
        simple = [self.string, self.integer, self.number, self.boolean, self.null, self.words, self.types]
        deep = [
            self.object,
            self.object,
            self.array,
            self.tuple,
            self.any_of,
            self.one_of,
            self.all_of,
            self.ref,
        ]
        make: Callable[[int], Node] = self.rng.choice(simple if depth == 0 else [*simple, *deep, *deep])
        return make(depth - 1)

    def string(self, depth: int) -> Node:
        least = self.rng.randint(0, 3)
        limits: list[dict[str, Any]] = [
            {},
            {"minLength": least, "maxLength": least + self.rng.randint(0, 6)},
            {"pattern": self.rng.choice(["^[a-f]+$", "^(x|yy){2}", "z", "\\d", "^$", "^[^a]b?$"])},
            {"format": self.rng.choice(["date", "uuid", "ipv4", "email", "no-such-format"])},
        ]
        return {"type": "string", **self.rng.choice(limits)}

    def integer(self, depth: int) -> Node:
        node: dict[str, Any] = {"type": "integer"}
        low = self.rng.randint(-300, 300)
        if self.rng.random() < 0.5:
            node[self.rng.choice(["minimum", "exclusiveMinimum"])] = low
        if self.rng.random() < 0.5:
            node[self.rng.choice(["maximum", "exclusiveMaximum"])] = low + self.rng.randint(2, 400)
        if self.rng.random() < 0.2:
            node["multipleOf"] = self.rng.choice([2, 3, 10])
        return node

    def number(self, depth: int) -> Node:
        low = self.rng.choice([-10.5, 0, 0.25, 1000])
        bounds = {"minimum": low, "exclusiveMaximum": low + 1.5}
        return {"type": "number", **self.rng.choice([{}, bounds])}

    def boolean(self, depth: int) -> Node:
        return {"type": "boolean"}

    def null(self, depth: int) -> Node:
        return {"type": "null"}

    def words(self, depth: int) -> Node:
        values = ["", "on", "off", "a\nb", "ü", 0, -1, 1.5, None, True, [1], {"a": 1}]
        return {"enum": self.rng.sample(values, self.rng.randint(1, 5))}

    def types(self, depth: int) -> Node:
        return {"type": self.rng.sample(["string", "integer", "boolean", "null", "array", "object"], 2)}

    def object(self, depth: int) -> Node:
        names = self.rng.sample(self.names, self.rng.randint(0, 4))
        node: dict[str, Any] = {"type": "object", "properties": {name: self.node(depth) for name in names}}
        node["required"] = [name for name in names if self.rng.random() < 0.6]
        if self.rng.random() < 0.7:
            node["additionalProperties"] = self.rng.choice([False, False, {"type": "integer"}])
        if len(names) == len(node["required"]) and self.rng.random() < 0.4:
            node["maxProperties"] = len(node["required"]) + 1
        return node

    def array(self, depth: int) -> Node:
        least = self.rng.randint(0, 2)
        return {"type": "array", "items": self.node(depth), "minItems": least,
                "maxItems": least + self.rng.randint(0, 3)}  # fmt: skip

    def tuple(self, depth: int) -> Node:
        first = [self.node(depth) for _ in range(self.rng.randint(1, 3))]
        return {"type": "array", "prefixItems": first, "items": self.rng.choice([False, {"type": "null"}]),
                "minItems": self.rng.randint(0, len(first))}  # fmt: skip

    def any_of(self, depth: int) -> Node:
        return {"anyOf": [self.node(depth) for _ in range(self.rng.randint(1, 3))]}

    def one_of(self, depth: int) -> Node:
        kinds = self.rng.sample(["string", "integer", "boolean", "null"], 2)
        return {"oneOf": [{"type": kind} for kind in kinds]}

    def all_of(self, depth: int) -> Node:
        return {"allOf": [{"type": "object", "properties": {name: self.node(0)}, "required": [name]}
                          for name in self.rng.sample(self.names, 2)]}  # fmt: skip

    def ref(self, depth: int) -> Node:
        name = f"d{len(self.definitions)}"
        self.definitions[name] = True  # taken; replaced below
        self.definitions[name] = self.node(depth)
        return {"$ref": f"#/$defs/{name}"}
