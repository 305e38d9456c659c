"""What the log says of a request: when it came, how far its prompt is, how it ended and what was wrong."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from server.client import call, until
from server.conftest import Replayed, Start

from dsv4_mlx.server import streaming
from dsv4_mlx.server.metrics import without_values
from dsv4_mlx.server.middleware import base_address_hint
from dsv4_mlx.server.options import ServerOptions

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "secret words"}]}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    """lines(how many) -> the log's lines, once there are so many."""

    def read(count: int) -> list[str]:
        assert until(lambda: len(caplog.records) >= count)
        return [record.getMessage() for record in caplog.records]

    with caplog.at_level(logging.INFO, logger="dsv4_mlx.server"):
        yield read


@pytest.mark.parametrize(
    ("path", "body", "headers", "said"),
    [
        ("/v1/v1/chat/completions", BODY, {}, ["404", "not_found", "/v1/v1/chat/completions"]),
        ("/api/v1/chat/completions", BODY, {}, ["404", "not_found", "/api/v1/chat/completions"]),
        (CHAT, {**BODY, "temperature": "secret"}, {}, ["400", "invalid_value", "temperature is"]),
        (CHAT, {"messages": [["secret"]]}, {}, ["400", "invalid_value", "messages is"]),
        (CHAT, {**BODY, "stop": ["secret", 1]}, {}, ["400", "invalid_value", "expected a string or"]),
        (CHAT, BODY, {"Origin": "http://evil.example"}, ["403", "origin_not_allowed"]),
        (CHAT, BODY, {"Host": "evil.example"}, ["403", "host_not_allowed"]),
        (CHAT, BODY, {"Content-Encoding": "gzip"}, ["415", "compressed"]),
        (CHAT, BODY, {"Content-Type": "text/plain"}, ["415", "unsupported_media_type"]),
    ],
)
def test_a_refusal_says_path_code_and_reason(
    start: Start, lines: Any, path: str, body: Any, headers: dict[str, str], said: list[str]
) -> None:
    reply = call(start().port, "POST", path, body, headers)
    begin, end = lines(2)
    assert begin.split()[1:4] == ["POST", path, "begins"] and begin.split()[0] == end.split()[0]
    assert all(word in end for word in said), end
    assert str(reply.status) == said[0] and "secret" not in begin + end


def test_what_is_wrong_with_an_address_is_said(start: Start) -> None:
    port = start().port
    for path, base in (
        ("/v1/v1/chat/completions", "http://HOST:PORT/v1"),
        ("/api/v1/chat/completions", "http://HOST:PORT/v1"),
        ("/v1/v1/messages", "http://HOST:PORT"),
    ):
        said = call(port, "POST", path, BODY).json()["error"]["message"]
        assert said.endswith(f"the base address is {base}"), said
    assert "base address" not in call(port, "POST", "/v1/embeddings", BODY).text
    assert base_address_hint("/", ["/chat/completions"]) == ""


@pytest.mark.parametrize("path", ["/v1/beta/completions", "http://127.0.0.1:8080/v1/completions"])
def test_addresses_as_programs_write_them(start: Start, path: str) -> None:
    assert call(start().port, "POST", path, {"prompt": "a"}).status == 200


def test_compressed_bodies_are_named(start: Start) -> None:
    reply = call(start().port, "POST", CHAT, None, {"Content-Encoding": "gzip"}, raw=b"\x1f\x8b")
    assert reply.status == 415 and "gzip" in reply.json()["error"]["message"]
    assert call(start().port, "POST", CHAT, BODY, {"Content-Encoding": "identity"}).status == 200


@pytest.mark.parametrize("strict", [False, True])
def test_a_models_name_is_known_to_get_as_to_post(start: Start, strict: bool) -> None:
    port = start(options=ServerOptions(port=0, strict_model=strict)).port
    for name in ("gpt-5", "org/model", "deepseek-v4-flash"):
        posted = call(port, "POST", CHAT, {**BODY, "model": name})
        got = call(port, "GET", f"/v1/models/{name}")
        assert posted.status == got.status == (200 if not strict or name == "deepseek-v4-flash" else 404)
        assert got.status == 404 or got.json()["id"] == name


def test_a_long_prompt_says_how_far_it_is(replay: Any, lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "PREFILL_LOG", 0.0)
    running: Replayed = replay({"content": "ok"})
    assert call(running.port, "POST", CHAT, BODY).status == 200
    said = [line for line in lines(3) if " prefill " in line]
    assert said and said[-1].split()[2] == said[-1].split()[4]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("n is 3: one answer at a time", "n is 3: one answer at a time"),
        ("seed is 'my words, expected x', expected a number", "seed is ..., expected a number"),
        ("messages is [{'content': 'my wo, expected an array", "messages is ..., expected an array"),
        ("can't be read", "can't be read"),
        ("tool 'my words' is wrong", "tool ..."),
    ],
)
def test_a_reason_without_what_it_quotes(message: str, said: str) -> None:
    assert without_values(message) == said
