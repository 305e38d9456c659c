"""Schemas and patterns that mean harm, or mean nothing: refused in words, at once, or harmless."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from grammar.scripted_model import Speaker
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.errors import InputError, ModelOutputError
from dsv4_mlx.grammar.rules import Json, Regex, Rule

HOSTILE = Path(__file__).parent / "hostile"

# What each file's refusal says; every file is here.
SAYS = {
    "back_reference": "a pattern is not understood: backreferences are not supported",
    "base_inside": "at #/properties/a: '$id' is not enforced",
    "bound_beyond_exact": "9007199254740993 is too large to be kept exactly",
    "bound_of_text": "at #/minimum: '5' is no bound, expected a number",
    "bounds_crossed": "minimum (5) is greater than maximum (4)",
    "broken_pattern": "a pattern is not understood: unclosed group",
    "condition": "'if' is not enforced",
    "contains": "'contains' is not enforced",
    "count_of_text": "at #/maxLength: '5' is no count",
    "cut_short": "is not JSON",
    "dependent": "'dependentRequired' is not enforced",
    "distinct_keys": "distinct keys can't be enforced",
    "dynamic_reference": "'$dynamicRef' is not enforced",
    "empty_enum": "nsatisfiable",
    "endless_array": "every value of it holds another of its own kind",
    "endless_by_allof": "every value of it holds another of its own kind",
    "endless_object": "every value of it holds another of its own kind",
    "endless_where_optional": "at #/$defs/e: every value of it holds another of its own kind",
    "enum_of_an_object": "enum must be an array",
    "false": "schema is false",
    "infinite_bound": "is not JSON",
    "infinite_enum": "is not JSON",
    "lengths_crossed": "minLength (5) is greater than maxLength (4)",
    "list": "is no schema, expected an object, true or false",
    "lone_surrogate": "hex escape",
    "look_ahead": "a pattern is not understood: look-around",
    "lowest_count_too_large": "1000000000 is more than an answer holds, expected up to 10000",
    "lowest_length_too_large": "is more than an answer holds",
    "multiple_of_zero": "invalid multiple of",
    "names_of_properties": "'propertyNames' is not enforced",
    "nan": "NaN is no JSON",
    "negative_count": "-1 is no count, expected a whole number from 0",
    "no_type_at_all": "nsatisfiable",
    "not": "'not' is not enforced",
    "overlapping_one_of": "branches of oneOf that overlap",
    "pattern_of_a_number": "Expected string for 'pattern'",
    "patterns_of_names_that_overlap": "are not disjoint",
    "properties_of_a_list": "at #/properties: [1] is there, expected an object",
    "reference_of_a_number": "at #/$ref: 5 is there, expected text",
    "reference_outside": "is outside of this schema",
    "reference_to_a_file": "'file:///etc/passwd' is outside of this schema",
    "reference_to_a_number": "3 is no schema",
    "reference_to_itself": "every value of it holds another of its own kind",
    "reference_to_nowhere": "'#/$defs/none' names no place in it",
    "references_in_a_circle": "every value of it holds another of its own kind",
    "required_but_false": "required property 'a' is unsatisfiable",
    "required_of_numbers": "'required'",
    "required_of_text": "'required'",
    "schema_of_a_number": "at #/properties/a: 5 is no schema",
    "text": "is no schema",
    "type_of_a_number": "type must be a string or array of strings",
    "types_that_exclude_each_other": "incompatible types",
    "unevaluated": "'unevaluatedProperties' is not enforced",
    "unique_items": "'uniqueItems' is not enforced",
    "unknown_type": "float",
}


def refusal(speaker: Speaker, rule: Rule) -> str:
    with pytest.raises(InputError) as raised:
        speaker.grammars.constraint(rule, thinking=False)
    return str(raised.value)


def test_every_file_is_named() -> None:
    assert {path.stem for path in HOSTILE.iterdir()} == SAYS.keys()


@pytest.mark.parametrize("name", SAYS)
def test_hostile_schemas_are_refused_in_words(speaker: Speaker, name: str) -> None:
    message = refusal(speaker, Json((HOSTILE / f"{name}.json").read_text(encoding="utf-8")))
    assert SAYS[name] in message
    assert "llguidance" not in message and "lark" not in message.lower()


def nested(depth: int) -> dict[str, Any]:
    node: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        node = {"type": "array", "items": node}
    return node


def test_depth_size_and_count_have_limits(speaker: Speaker) -> None:
    assert speaker.grammars.constraint(Json(json.dumps(nested(60))), thinking=False)
    assert "more than 64 schemas" in refusal(speaker, Json(json.dumps(nested(70))))
    assert "is not JSON" in refusal(speaker, Json("[" * 100_000))
    assert "expected at most 262144" in refusal(speaker, Json(" " * 300_000 + "{}"))
    many = json.dumps({"anyOf": [True] * 25_000}, separators=(",", ":"))
    assert "more than 20000 schemas" in refusal(speaker, Json(many))
    assert "expected at most 4096" in refusal(speaker, Regex("a" * 5000))
    assert "a pattern is not understood" in refusal(speaker, Regex("(?<=a)b"))


def test_a_chain_of_references_is_not_depth(speaker: Speaker) -> None:
    chain = {
        f"d{i}": {"type": "array", "maxItems": 1, "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(300)
    }
    schema = {"$ref": "#/$defs/d0", "$defs": {**chain, "d300": {"type": "null"}}}
    assert speaker.grammars.constraint(Json(json.dumps(schema)), thinking=False)


@pytest.mark.parametrize(
    "rule",
    [
        Regex("(?s:.*)a.{20}"),
        Regex(r"\w{0,200}\d{0,200}[\p{L}\p{N}]{100}"),
        Regex("(((a{0,100}){0,100}){0,100})x"),
        Regex("(x+x+)+y"),
        Json('{"type": "string", "pattern": "((a{1000}){1000}){1000}"}'),
        Json(
            json.dumps(
                {"anyOf": [{"pattern": f"({chr(97 + i)}.*){{5}}", "type": "string"} for i in range(26)]}
            )
        ),
        Json(json.dumps({"enum": [f"word {i}" for i in range(9000)]})),
    ],
    ids=range(7),
)
def test_costly_grammars_stay_within_a_step(speaker: Speaker, rule: Rule) -> None:
    """Work per step is limited: a grammar that needs more ends the answer with an error."""
    constraint = speaker.grammars.constraint(rule, thinking=False)
    rng = np.random.default_rng(0)
    started = time.process_time()
    for _ in range(60):
        try:
            logits = rng.standard_normal(speaker.size)
            token = int(np.argmax(np.where(constraint.mask(speaker.size), logits, -np.inf)))
        except ModelOutputError as error:
            assert "the grammar can't go on" in str(error)
            break
        if token == speaker.end:
            break
        constraint.accept(token)
    assert time.process_time() - started < 10


WORDS = st.sampled_from([
    "type", "properties", "items", "enum", "$ref", "required", "anyOf", "oneOf", "allOf", "not", "minItems",
    "maxLength", "pattern", "const", "additionalProperties", "prefixItems", "$defs", "format", "minimum",
    "$id",    "x-guidance", "patternProperties", "multipleOf", "uniqueItems",
])  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | WORDS
    | st.sampled_from(["string", "object", "array", "integer", "#", "#/$defs/a", "a*", "(", "date"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_anything_is_enforced_or_refused(speaker: Speaker, schema: dict[str, Any]) -> None:
    """No schema makes another error, a hang, or an answer that can't go on."""
    try:
        constraint = speaker.grammars.constraint(Json(json.dumps(schema)), thinking=False)
    except InputError:
        return
    tokens, _ = speaker.says(constraint, 0, most=40)
    assert speaker.text(tokens) is not None
