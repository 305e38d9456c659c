"""--json-schema and --regex: what form an answer must have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from dsv4_mlx.errors import InputError, UsageError

if TYPE_CHECKING:
    from dsv4_mlx.engine.constraint import Constraint
    from dsv4_mlx.engine.engine import Engine
    from dsv4_mlx.grammar.rules import Json, Regex

JsonSchemaOption = Annotated[
    Path | None,
    typer.Option("--json-schema", metavar="FILE", help="The answer is JSON of the schema in FILE."),
]
RegexOption = Annotated[
    str | None, typer.Option("--regex", metavar="PATTERN", help="The whole answer matches PATTERN.")
]


class AnswerFormat(TypedDict):
    """What holds an answer to its form, and the schema that the prompt shows the model."""

    constraint: Constraint | None
    schema: Any


def rule_of(schema: Path | None, pattern: str | None) -> Json | Regex | None:
    """The rule that the two options make. Raises UsageError for both, InputError for a schema without use."""
    if schema is not None and pattern is not None:
        raise UsageError("--json-schema and --regex can't go together", next="give one of them")
    if schema is None and pattern is None:
        return None
    from dsv4_mlx.grammar.grammars import check
    from dsv4_mlx.grammar.rules import Json, Regex

    rule = Json(_text(schema)) if schema is not None else Regex(pattern or "")
    check(rule)  # a defect shows before a model is loaded
    return rule


def form(engine: Engine, folder: Path, rule: Json | Regex | None, *, thinking: bool) -> AnswerFormat:
    """The constraint of one answer. Raises InputError for a rule that can't be enforced."""
    if rule is None:
        return {"constraint": None, "schema": None}
    from dsv4_mlx.grammar.grammars import Grammars
    from dsv4_mlx.grammar.rules import Json

    grammars = Grammars(folder, engine.config.vocab_size, engine.prompts.markers)
    try:
        constraint = grammars.constraint(rule, thinking=thinking)
    finally:
        grammars.close()
    return {"constraint": constraint, "schema": json.loads(rule.schema) if isinstance(rule, Json) else None}


def is_whole(
    rule: Json | Regex | None, constraint: Constraint | None, answer: str, vocabulary: int, end: int
) -> bool:
    """Whether an answer has its form to the end: where `end` is the token that ends a turn, it may follow."""
    if rule is None or constraint is None:
        return True
    import numpy as np

    from dsv4_mlx.grammar.rules import Json

    if not np.isfinite(constraint.allow(np.zeros(vocabulary, np.float32))[end]):
        return False
    try:  # a stop string takes text away that the constraint has seen
        return not isinstance(rule, Json) or json.loads(answer) is not ...
    except ValueError:
        return False


def _text(schema: Path) -> str:
    try:
        text = schema.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the schema can't be read: {error}", where=schema) from None
    if not text.strip():
        raise InputError("the file of the schema is empty", where=schema, next="write a schema in it")
    return text
