"""Namespaces, handles, stored responses and text completions in bodies."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols import completions, messages, responses
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.tokenizer.template import Spelling

HI = [{"role": "user", "content": "hi"}]
F = {"type": "function", "function": {"name": "f"}}


def test_namespaces(facts: ServerInfo) -> None:
    tools = [{"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g"}]}]
    ask = responses.read({"input": "x", "tools": tools}, facts)
    assert ask.namespaces == {"ns__g": ("ns", "g")}
    assert json.loads(ask.tools.declared)[0]["function"]["name"] == "ns__g"


def test_handles_come_back(facts: ServerInfo) -> None:
    thinking = {"type": "thinking", "thinking": "t", "signature": "handle"}
    history = [*HI, {"role": "assistant", "content": [thinking, {"type": "text", "text": "a"}]}, *HI]
    assert messages.read({"messages": history, "max_tokens": 5}, facts).handles == {1: "handle"}
    items = [
        {"role": "user", "content": "q"},
        {"type": "reasoning", "summary": [], "encrypted_content": "resp_abc.def-0"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        {"role": "user", "content": "q"},
    ]
    assert responses.read({"input": items}, facts).handles == {1: "abc.def"}


@pytest.mark.parametrize(
    "fields",
    [
        {"previous_response_id": "r"},
        {"conversation": "c"},
        {"background": True},
        {"input": [{"type": "item_reference", "id": "x"}]},
    ],
)
def test_stored_responses_are_refused(facts: ServerInfo, fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as refused:
        responses.read({"input": "x", **fields}, facts)
    assert (refused.value.status, refused.value.code) == (400, "unsupported_value")


def test_responses_without_anything(facts: ServerInfo) -> None:
    assert responses.read({}, facts).model == facts.model


def test_text_completions(facts: ServerInfo, spelling: Spelling) -> None:
    def ids(**body: Any) -> list[int]:
        return list(completions.read(body, facts, spelling).prompt)

    bos = spelling.id("<｜begin▁of▁sentence｜>")
    begin, hole, end = (spelling.id(f"<｜fim▁{name}｜>") for name in ("begin", "hole", "end"))
    a, b = spelling.encode("aa"), spelling.encode("bb")
    assert ids(prompt="aa") == ids(prompt=["aa"]) == ids(prompt=a) == [bos, *a]
    assert ids(prompt="aa", suffix="bb") == [bos, begin, *a, hole, *b, end]
    marker = "<｜User｜>"
    assert spelling.id(marker) not in ids(prompt=marker)
    raw = ServerInfo(ServerOptions(raw_special_tokens=True), "m", facts.levels, facts.vocabulary, 4096, 4096)
    assert completions.read({"prompt": marker}, raw, spelling).prompt == (bos, spelling.id(marker))
    assert completions.read({"prompt": "a"}, facts, spelling).max_tokens == 256
    for wrong in (
        {"prompt": ["a", "b"]},
        {"prompt": 5},
        {"prompt": [10**6]},
        {"prompt": "a", "suffix": "b", "echo": True},
    ):
        with pytest.raises(ApiError):
            completions.read(wrong, facts, spelling)
