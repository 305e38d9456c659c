"""What a model says under a schema is valid, whatever its logits are. jsonschema is the judge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from grammar.schemas import WRITTEN, Node, generated
from grammar.scripted_model import Speaker, may_say
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft4Validator, Draft7Validator, Draft202012Validator

from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.matcher import ShortNumbers
from dsv4_mlx.grammar.rules import Json, Regex

OLD = {"tuple of old": Draft7Validator, "old definitions": Draft7Validator, "draft 4 bounds": Draft4Validator}


def value_of(text: str) -> Any:
    """The JSON value, said strictly: no NaN, no key twice."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        assert len(found) == len(pairs) or "\\u" not in text
        return found

    return json.loads(text, parse_constant=refuse, object_pairs_hook=once)


def judge(schema: Node, judge_class: Any = Draft202012Validator) -> Any:
    return judge_class(schema, format_checker=judge_class.FORMAT_CHECKER)


@pytest.mark.parametrize("name", WRITTEN)
def test_written_schemas_are_enforced(speaker: Speaker, name: str) -> None:
    schema = WRITTEN[name]
    validator = judge(schema, OLD.get(name, Draft202012Validator))
    for seed in range(4):
        tokens, ended = speaker.says(
            speaker.grammars.constraint(Json(json.dumps(schema)), thinking=False), seed
        )
        assert ended
        text = speaker.text(tokens)
        validator.validate(value_of(text))
        assert text == text.strip()


def test_generated_schemas_are_enforced_or_refused(speaker: Speaker) -> None:
    enforced = 0
    for seed in range(300):
        schema = generated(seed)
        Draft202012Validator.check_schema(schema)
        try:
            constraint = speaker.grammars.constraint(Json(json.dumps(schema)), thinking=False)
        except InputError as error:
            assert "nsatisfiable" in str(error) or "oneOf" in str(error), (schema, str(error))
            continue
        tokens, ended = speaker.says(constraint, seed)
        assert ended, schema
        judge(schema).validate(value_of(speaker.text(tokens)))
        enforced += 1
    assert enforced >= 290


def test_the_judge_can_say_no(speaker: Speaker) -> None:
    """The random model without its grammar: the test above is not passed by anything."""
    from dsv4_mlx.engine.constraint import Without

    valid = 0
    for name, schema in WRITTEN.items():
        tokens, _ = speaker.says(Without([speaker.end - 1]), 1, most=60)
        try:
            valid += judge(schema, OLD.get(name, Draft202012Validator)).is_valid(
                value_of(speaker.text(tokens))
            )
        except (ValueError, AssertionError):
            continue
    assert valid == 0


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    )
)
def test_any_value_may_be_said(speaker: Speaker, value: Any) -> None:
    """No value is out of reach: what JSON can say in one line is allowed, in either spelling."""
    constraint = speaker.grammars.constraint(Json("{}"), thinking=False)
    for separators in (None, (",", ":")):
        text = json.dumps(value, ensure_ascii=False, separators=separators).replace("\x7f", "\\u007f")
        assert may_say(constraint, speaker.ids(text), speaker.end), text


def test_any_object_without_a_schema(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(Json(), thinking=False)
    assert may_say(constraint, speaker.ids('{"a": [1, {}]}'), speaker.end)
    for text in ("[]", '"a"', "1", "{", "{} ", "```json\n{}\n```"):
        assert not may_say(constraint, speaker.ids(text), speaker.end), text


def test_strict_closes_objects(speaker: Speaker) -> None:
    inner = {"type": "object", "properties": {"b": {"type": "null"}}}
    schema = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}, "o": inner}})
    loose = speaker.grammars.constraint(Json(schema), thinking=False)
    strict = speaker.grammars.constraint(Json(schema, strict=True), thinking=False)
    for text, allowed in (
        ('{"a": 1, "o": {"b": null}}', True),
        ('{"a": 1}', False),
        ('{"a": 1, "o": {}}', False),
        ('{"a": 1, "o": {"b": null}, "c": 1}', False),
    ):
        assert may_say(loose, speaker.ids(text), speaker.end), text
        assert may_say(strict, speaker.ids(text), speaker.end) == allowed, text


def test_white_space_has_a_limit(speaker: Speaker) -> None:
    constraint = speaker.grammars.constraint(Json("{}"), thinking=False)
    assert may_say(constraint, speaker.ids("[1, 2]"), speaker.end)
    for blanks in ("  ", "\n", "\t", " \n"):
        assert not may_say(constraint, speaker.ids(f"[1,{blanks}2]"), speaker.end)


def after(speaker: Speaker, schema: Any, text: str) -> tuple[bool, bool]:
    """Whether a digit, and whether anything else, may follow."""
    constraint = speaker.grammars.constraint(Json(json.dumps(schema)), thinking=False)
    for token in speaker.ids(text):
        constraint.accept(token)
    mask = constraint.fork().mask(speaker.size)
    assert mask is not None
    digits = [i for i in range(speaker.size) if speaker.vocabulary.text(i)[:1].isdigit()]
    return bool(mask[digits].any()), bool(np.delete(mask, digits).any())


@pytest.mark.parametrize("kind", [{"type": "integer"}, {"type": "number"}, {}])
@pytest.mark.parametrize("begin", ["", "0.", "-", "1e"])
def test_a_number_ends(speaker: Speaker, kind: Any, begin: str) -> None:
    if kind.get("type") == "integer" and begin in ("0.", "1e"):
        return
    schema = {"type": "object", "properties": {"a": kind}, "required": ["a"]}
    assert after(speaker, schema, f'{{"a": {begin}' + "1" * 10)[0]
    assert after(speaker, schema, f'{{"a": {begin}' + "1" * 24) == (False, True)


def test_digits_go_on_where_nothing_else_may_follow(speaker: Speaker) -> None:
    inner: Any = speaker.grammars.constraint(Regex("[0-9]{30}"), thinking=False)
    constraint = ShortNumbers(inner)
    for token in speaker.ids("1" * 24):
        constraint.accept(token)
    np.testing.assert_array_equal(constraint.mask(speaker.size), inner.mask(speaker.size))


def test_digits_in_a_text_are_free(speaker: Speaker) -> None:
    text = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    assert after(speaker, text, '{"a": "\\"' + "1" * 30)[0]
