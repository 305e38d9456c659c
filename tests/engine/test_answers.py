"""Answers token by token: kinds of pieces, characters split over tokens, what is held back."""

from __future__ import annotations

import pytest

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.tokenizer.output_parser import Piece, TextParser
from dsv4_mlx.tokenizer.template import THINK, Prompts, Think


@pytest.fixture(scope="module")
def prompts(engine: Engine) -> Prompts:
    return engine.prompts


def parse(prompts: Prompts, ids: list[int], think: Think, *, length: bool = False) -> list[Piece]:
    answer = TextParser(prompts.ask("x", think), prompts.spelling)
    pieces = [piece for token in ids for piece in answer.push(token)]
    return [*pieces, *answer.finish(length=length)]


def joined(pieces: list[Piece]) -> dict[str, str]:
    text: dict[str, str] = {}
    for piece in pieces:
        text[piece.kind] = text.get(piece.kind, "") + piece.text
    return text


def test_thinking_then_answer(prompts: Prompts) -> None:
    ids = [
        *prompts.tokenizer.encode("let me see"),
        prompts.markers.end_think,
        *prompts.tokenizer.encode("it is so"),
    ]
    assert joined(parse(prompts, ids, "on")) == {"thinking": "let me see", "answer": "it is so"}
    assert [p.kind for p in parse(prompts, ids, "on")] == sorted(
        (p.kind for p in parse(prompts, ids, "on")), reverse=True
    )


def test_without_thinking_all_is_answer(prompts: Prompts) -> None:
    assert joined(parse(prompts, prompts.tokenizer.encode("it is so"), "off")) == {"answer": "it is so"}


def test_pieces_come_as_tokens_do(prompts: Prompts) -> None:
    """Nothing waits for the end: each token of plain text gives its text at once."""
    answer = TextParser(prompts.ask("x", "off"), prompts.spelling)
    words = ["the", " a", "nd", " of", " it"]
    for word in words:
        for token in prompts.tokenizer.encode(word):
            pieces = list(answer.push(token))
            assert pieces and pieces[0].text in word


@pytest.mark.parametrize("text", ["é", "日本語です", "🙂🙃", "a🙂b日c"])
@pytest.mark.parametrize("think", ["off", "on"])
def test_characters_split_over_tokens(prompts: Prompts, text: str, think: Think) -> None:
    ids = prompts.tokenizer.encode(text)
    assert len(ids) > len(text) or text.isascii()  # the small tokenizer has a token per byte here
    pieces = parse(prompts, [*ids, prompts.markers.end_think], think)
    assert "".join(piece.text for piece in pieces) == text
    assert not any("\ufffd" in piece.text for piece in pieces)


def test_an_unfinished_character_comes_out_at_the_end_at_most(prompts: Prompts) -> None:
    ids = prompts.tokenizer.encode("ok 🙂")[:-1]
    text = "".join(piece.text for piece in parse(prompts, ids, "off", length=True))
    assert text.startswith("ok ") and text.rstrip("\ufffd") == "ok "


def test_an_answer_cut_while_thinking(prompts: Prompts) -> None:
    ids = prompts.tokenizer.encode("still thinking")
    assert joined(parse(prompts, ids, "max", length=True)) == {"thinking": "still thinking"}


def test_thinking_that_ends_within_a_character_is_an_answer_too(prompts: Prompts) -> None:
    ids = prompts.tokenizer.encode("ok 🙂")[:-1]
    assert joined(parse(prompts, ids, "on")) == {"thinking": "ok ", "answer": "ok"}


def test_no_tokens_no_pieces(prompts: Prompts) -> None:
    for think in THINK:
        assert parse(prompts, [], think) == []
