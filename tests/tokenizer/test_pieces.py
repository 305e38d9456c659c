"""Long prompts are encoded in pieces: the ids are the vendor's ids of the whole, whatever the text."""

from __future__ import annotations

from typing import Any

import pytest
from deepseek_recipe import AssistantMessage, Conversation, DeepseekV4Encoding, Tokenizer, UserMessage
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.hub.models import SHIPPED
from dsv4_mlx.tokenizer import template
from dsv4_mlx.tokenizer.template import Prompts, TooManyTokens

VENDOR = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
PROMPTS = Prompts(SHIPPED, "april")
CODE = 'def f(x):\n    return {"a": x[0], "b12c": 1234567}\n\n\t# 漢字かな，テスト 🙂\r\n'
# white space of every kind that a rule for words may treat apart, marks, digits that are no ASCII, joiners
LETTERS = list("ab Z09,.[]{}\"'_-\n\r\t\v\x1c\x85\xa0\u2028\u3000é\u0301٣Ⅳ漢字かナー，。🙂\u200d\u200bß<|>｜")
text = st.text(st.sampled_from(LETTERS), max_size=200) | st.text(max_size=80)


def in_pieces(value: str, size: int, **more: Any) -> list[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "PIECE", size)
        patch.setattr(template, "NEAR", min(size, 8))
        return PROMPTS.spelling.encode(value, **more)


@given(value=text, size=st.integers(2, 40))
def test_the_ids_are_those_of_the_whole(value: str, size: int) -> None:
    assert in_pieces(value, size) == PROMPTS.spelling.tokenizer.encode(value)
    assert in_pieces(value, size, most=1000) == PROMPTS.spelling.tokenizer.encode(value)


@given(first=text, second=text, size=st.integers(2, 40))
def test_a_conversation_has_the_vendors_ids(first: str, second: str, size: int) -> None:
    said = [UserMessage(first + "<think>"), AssistantMessage(second), UserMessage("<｜User｜>" + second)]
    for think in (False, True):
        conversation = Conversation(said, thinking_mode=think)
        whole = DeepseekV4Encoding().with_tokenizer(VENDOR).encode(conversation)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(template, "PIECE", size)
            assert PROMPTS.encode(conversation, 10_000) == whole


@given(parts=st.lists(text | st.sampled_from(["<think>", "</think>", "<｜User｜>"]), max_size=6))
def test_markers_that_count_are_found_wherever_pieces_end(parts: list[str]) -> None:
    value = "".join(parts)
    whole = PROMPTS.spelling.encode_raw(value)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "PIECE", 5)
        assert PROMPTS.spelling.encode_raw(value) == whole
    assert PROMPTS.spelling.decode(whole).replace("\ufffd", "") == value.replace("\ufffd", "")


@pytest.mark.parametrize(
    "value", [CODE * 3000, "[]," * 70_000, "漢字" * 50_000, " " * 200_000, "aB3x" * 50_000]
)
def test_pieces_of_the_usual_size(value: str) -> None:
    assert PROMPTS.spelling.encode(value, 1 << 20) == PROMPTS.spelling.tokenizer.encode(value)


@pytest.mark.parametrize("value", [CODE, "[],", "漢字", "a", " "])
def test_what_is_too_long_is_not_encoded_further(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = value * ((4 << 20) // len(value))
    asked: list[int] = []

    class Counted:
        def encode(self, piece: str) -> list[int]:
            asked.append(len(piece))
            return PROMPTS.tokenizer.encode(piece)

    monkeypatch.setattr(PROMPTS.spelling, "tokenizer", Counted())
    with pytest.raises(TooManyTokens) as refused:
        PROMPTS.spelling.encode(whole, 1000)
    assert refused.value.count > 1000
    assert max(asked) <= template.PIECE and sum(asked) <= 4 * template.PIECE


def test_a_tokenizer_with_other_rules_is_not_cut(tmp_path: Any) -> None:
    file = (SHIPPED / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(file.replace("{N}{1,3}", "{N}{1,2}"), "utf-8")
    other = template.Spelling(tmp_path)
    value = CODE * 3000
    assert [end for _, end, safe in other._parts(value, 0, len(value)) if safe] == [len(value)]
