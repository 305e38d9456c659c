"""Random values of the vendors' types, with a word of its own in every text."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NotRequired, Required, Union, get_args, get_origin

from pydantic import BaseModel
from typing_extensions import get_type_hints, is_typeddict

SCHEMAS = ("parameters", "schema", "input_schema")
DEEP = 9
Path = tuple[str, ...]


def hints(kind: Any) -> dict[str, tuple[Any, bool]]:
    """name -> (type, whether it must be there) of a typed dictionary or a model."""
    if not is_typeddict(kind):
        return {name: (info.annotation, info.is_required()) for name, info in kind.model_fields.items()}
    total = kind.__total__
    found = get_type_hints(kind, include_extras=True)
    origins: dict[str, Any] = {name: get_origin(hint) for name, hint in found.items()}
    return {
        name: (hint, origins[name] is Required or total and origins[name] is not NotRequired)
        for name, hint in found.items()
    }


@dataclass
class Maker:
    """One body. `words`: every text's word, by the names and kinds on the way to it."""

    dice: random.Random
    words: list[tuple[Path, str]] = field(default_factory=list)

    def word(self, path: Path) -> str:
        made = f"q{len(self.words)}z{self.dice.randrange(1000)}j"
        self.words.append((path, made))
        return made

    def value(self, hint: Any, path: Path) -> Any:
        origin, inner = get_origin(hint), get_args(hint)
        if origin in (Required, NotRequired, Annotated):
            return self.value(inner[0], path)
        if is_typeddict(hint) or isinstance(hint, type) and issubclass(hint, BaseModel):
            return self.fields(hint, path)
        if origin is Literal:
            return self.dice.choice(inner)
        if origin is Union or type(hint).__name__ == "UnionType":
            return self.value(self.dice.choice(inner), path)
        if path[-1] in SCHEMAS:
            return self.schema(path)
        if "dict" in str(origin).lower() or "Mapping" in str(origin):
            return {self.word(path): self.value(inner[1], path) for _ in range(self.dice.randrange(3))}
        if origin is not None and inner:
            return [self.value(inner[0], path) for _ in range(self.dice.choice((0, 1, 1, 2, 3)))]
        return self.plain(hint, path)

    def fields(self, kind: Any, path: Path) -> dict[str, Any]:
        """What must be there, and of the rest the less the deeper."""
        rare = 0.35 / max(1, len(path) - 1)
        chosen = {
            name: hint
            for name, (hint, needed) in hints(kind).items()
            if (needed or name in (*SCHEMAS, "input") or self.dice.random() < rare) and len(path) < DEEP
        }
        said = next((one for one in self._kinds(chosen.get("type"))), "")
        here = (*path, f"={said}") if said else path
        return {name: self.value(hint, (*here, name)) for name, hint in chosen.items()}

    def _kinds(self, hint: Any) -> Iterator[str]:
        while hint is not None and get_origin(hint) is not Literal:
            hint = next(iter(get_args(hint)), None)
        yield from map(str, get_args(hint))

    def plain(self, hint: Any, path: Path) -> Any:
        dice, name = self.dice, path[-1]
        if hint is str and name == "arguments":
            return json.dumps({"a": self.word(path)})
        if hint is str and name == "file_data":
            coded = base64.b64encode(self.word(path).encode()).decode()
            return dice.choice(("", "data:text/plain;base64,")) + coded
        if hint is str and name == "definition":  # in lark, and in regex
            return f'start: "{self.word(path)}"'
        if hint is str:
            return self.word(path)
        if hint is bool:
            return dice.random() < 0.5
        if hint in (int, float):
            return dice.choice((0, 1, 1, 2, 5))
        if hint is type(None):
            return None
        return {"a": self.word(path)} if dice.random() < 0.7 else {}

    def schema(self, path: Path) -> Any:
        kind = self.dice.choice(("string", "integer", "boolean", "array", "object"))
        about = {"type": "object", "description": self.word(path)}
        return {**about, "properties": {self.word(path): {"type": kind}}}


JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1 << 70, 1.5, "", "x", "\ud800", "<｜User｜>", [], {}, [[]], [None], {"type": "text"},
    {"type": 5}, {"type": "frob", "id": None}, [{"type": "text", "text": None}], {"role": "user"}, [1, "a"],
)  # fmt: skip


def spoilt(dice: random.Random, body: Any) -> Any:
    """`body` with one value anywhere in it changed, left out, doubled, or a stranger beside it."""
    places: list[tuple[Any, Any]] = []

    def walk(found: Any) -> None:
        for key in found if isinstance(found, dict) else range(len(found)) if isinstance(found, list) else ():
            places.append((found, key))
            walk(found[key])

    walk(body)
    holder, key = dice.choice(places)
    deed = dice.randrange(4)
    if deed == 0:
        holder[key] = deepcopy(dice.choice(JUNK))
    elif deed == 1:
        del holder[key]
    elif deed == 2 and isinstance(holder, list):
        holder.append(deepcopy(holder[key]))
    elif isinstance(holder, dict):
        holder[dice.choice(("frob", "type", "id", "content", "name", "role"))] = deepcopy(dice.choice(JUNK))
    return body


IN_RANGE: dict[str, Any] = {
    "n": 1, "best_of": 1, "temperature": 0.5, "top_p": 0.5, "presence_penalty": 1, "frequency_penalty": 1,
    "max_tokens": 5, "max_completion_tokens": 5, "max_output_tokens": 5, "logit_bias": {"5": 1},
    "logprobs": True, "top_logprobs": 2, "stop": ["x"], "stop_sequences": ["x"], "background": False,
    "top_k": 5,
}  # fmt: skip
STORED = ("previous_response_id", "conversation")
CALL = {"name": "f", "arguments": "{}"}


def mended(dice: random.Random, protocol: str, body: dict[str, Any], refused: set[str]) -> dict[str, Any]:
    """`body` without most of what makes nearly every random one refused: numbers out of their range, what is
    stored nowhere, results without calls, blocks that the other side says."""
    kept = {name: value for name, value in body.items() if name not in refused and name not in STORED}
    kept |= {name: IN_RANGE[name] for name in kept.keys() & IN_RANGE.keys()}
    if protocol == "completions":
        kept["logprobs"] = 2
        prompt = kept["prompt"]
        many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        kept["prompt"] = (prompt[0] if many else prompt) or "hi"
        if kept.get("echo"):
            kept.pop("suffix", None)
    if dice.random() < 0.8:
        kept.pop("tool_choice", None)
    kept.pop("function_call", None)
    if "top_logprobs" in kept and protocol == "chat":
        kept["logprobs"] = True
    hi = {"role": "user", "content": "hi"}
    if protocol == "chat":
        kept["messages"] = [hi, *(one for given in kept["messages"] for one in (*_call_before(given), given))]
    elif protocol == "messages":
        kept["messages"] = [hi, *(one for given in kept["messages"] for one in _sides(given))]
    elif protocol == "responses" and isinstance(kept.get("input"), list):
        calls = ({"type": "function_call", **CALL, "call_id": i.get("call_id")} for i in kept["input"])
        pairs = zip(calls, kept["input"], strict=True)
        kept["input"] = [
            hi, *(x for call, item in pairs for x in ((call, item) if _is_result(item) else (item,)))
        ]  # fmt: skip
    return deepcopy(kept)


def _is_result(item: dict[str, Any]) -> bool:
    return str(item.get("type")).endswith("_output")


def _call_before(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if message.get("role") == "tool":
        call = {"id": message["tool_call_id"], "type": "function", "function": CALL}
        yield {"role": "assistant", "tool_calls": [call]}
    elif message.get("role") == "function":
        yield {"role": "assistant", "function_call": CALL}


SAID = ("thinking", "redacted_thinking", "tool_use", "server_tool_use")


def _sides(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A message of Messages, block by block: from the one side or the other, a call before its result."""
    if not isinstance(message["content"], list):
        yield message
        return
    for block in message["content"]:
        kind, call = (
            block.get("type", ""),
            {"type": "tool_use", "id": block.get("tool_use_id"), "name": "f", "input": {}},
        )
        if kind.endswith("_tool_result"):
            yield {"role": "assistant", "content": [{**call, "type": "server_tool_use"}, block]}
            continue
        if kind == "tool_result":
            yield {"role": "assistant", "content": [call]}
        yield {"role": "assistant" if kind in SAID else "user", "content": [block]}
