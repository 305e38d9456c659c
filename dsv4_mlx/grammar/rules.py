"""What an answer must be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Json:
    """A JSON value of this schema (the schema's own text); "" for any JSON object.

    strict: every object has exactly the properties that the schema lists, all of them.
    """

    schema: str = ""
    strict: bool = False


@dataclass(frozen=True)
class Regex:
    """The whole answer matches the pattern (syntax of Rust's regex crate: no look-around, no references).

    \\d is 0 to 9.
    """

    pattern: str


@dataclass(frozen=True)
class ToolCalls:
    """Calls of these tools: a JSON array of Chat Completions function tools, as text.

    A tool with `strict: true` gets arguments of its schema; of the others, each name is one that the schema
    lists (any, if it leaves that open), said once, and each value is well formed. A function with `grammar`
    (syntax lark or regex, and its definition) takes one text, of that grammar.

    required: the answer is a block of calls and nothing else. Otherwise it is text, or `content`, and a
    block may follow or take its place. name: only this tool. parallel: more than one call.
    """

    tools: str
    required: bool = False
    name: str | None = None
    parallel: bool = True
    content: Json | Regex | None = None


Rule = Json | Regex | ToolCalls
