"""What a server on a personal machine must withstand, item by item of the list: 1 to 5, who may ask.

The items from 6 on are in test_security_content.py.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_STREAM, create_server, getaddrinfo
from typing import Any

import anthropic
import openai
import pytest
from server.client import call, connected, parsed, read
from server.conftest import Start

from dsv4_mlx.errors import MachineError, UsageError
from dsv4_mlx.server import lifecycle
from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.lifecycle import check_bind, listen
from dsv4_mlx.server.middleware import RequestHead, check, is_loopback
from dsv4_mlx.server.options import ServerOptions

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
BODY = {"messages": HI}
JS: dict[str, dict[str, list[str]]] = json.loads(Path(__file__).with_name("js_headers.json").read_text())
KEY = ServerOptions(port=0, api_key="secret-key")


def head(method: str = "GET", path: str = "/v1/models", **headers: str) -> RequestHead:
    return RequestHead(
        method, path, {"host": "127.0.0.1:8080", **{k.replace("_", "-"): v for k, v in headers.items()}}
    )


# 1. Bind


def test_1_loopback_by_default() -> None:
    assert ServerOptions().host == "127.0.0.1"
    for host in ("127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"):
        assert is_loopback(host)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert not is_loopback(host)


def test_1_other_addresses_need_a_key_or_a_word() -> None:
    with pytest.raises(UsageError, match="api-key"):
        check_bind(ServerOptions(host="0.0.0.0"))
    check_bind(ServerOptions(host="0.0.0.0", api_key="x"))
    check_bind(ServerOptions(host="0.0.0.0", allow_unauthenticated=True))


def test_1_localhost_is_both_addresses() -> None:
    found = listen(ServerOptions(host="localhost", port=0))
    try:
        names = {one.getsockname()[0] for one in found}
        assert "127.0.0.1" in names and names <= {"127.0.0.1", "::1"}
        assert len({one.getsockname()[1] for one in found}) == 1
        assert len(found) == len({info[4][0] for info in getaddrinfo("localhost", 1, type=SOCK_STREAM)})
    finally:
        for one in found:
            one.close()


def test_1_busy_port(start: Start) -> None:
    port = start().port
    with pytest.raises(MachineError, match="--port"):
        listen(ServerOptions(port=port))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
@pytest.mark.parametrize("other", ["127.0.0.1", "::1"])
def test_1_a_port_is_busy_on_both_addresses(other: str, host: str) -> None:
    """A client that asks `localhost` tries both, and would reach the other program."""
    try:
        busy = create_server((other, 0), family=AF_INET6 if ":" in other else AF_INET)
    except OSError:
        pytest.skip(f"this machine has no {other}")
    with busy, pytest.raises(MachineError, match=f"another program answers on {other}"):
        listen(ServerOptions(host=host, port=busy.getsockname()[1], api_key="x"))


def test_1_only_a_missing_family_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(code: int) -> None:
        def listening(family: int, *where: Any) -> Any:
            if family == AF_INET6:
                raise OSError(code, os.strerror(code))
            return create_server(("127.0.0.1", 0))

        both = [
            (family, SOCK_STREAM, 0, "", (name, 8080)) for family, name in ((AF_INET6, "::1"), (AF_INET, ""))
        ]
        monkeypatch.setattr("socket.getaddrinfo", lambda *asked, **options: both)
        monkeypatch.setattr(lifecycle, "_listening", listening)

    refuse(errno.EADDRNOTAVAIL)
    (found,) = listen(ServerOptions(host="localhost", port=0))
    found.close()
    refuse(errno.EADDRINUSE)
    with pytest.raises(MachineError, match="port 0: Address already in use"):
        listen(ServerOptions(host="localhost", port=0))


# 2. Host header


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:9", "[::1]:8080", "x.localhost", "LOCALHOST:1", "host.docker.internal"]
)
def test_2_names_of_this_machine(host: str) -> None:
    check(head(host=host), ServerOptions())


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil", "192.168.0.4", ""],
)
def test_2_other_names_are_refused(start: Start, host: str) -> None:
    with pytest.raises(ApiError) as refused:
        check(head(host=host), ServerOptions())
    assert (refused.value.status, refused.value.code) == (403, "host_not_allowed")
    if host:
        running = start()
        reply = call(running.port, "POST", CHAT, BODY, {"Host": host})
        assert reply.status == 403 and not running.worker.jobs


def test_2_named_hosts_are_allowed() -> None:
    check(head(host="box.lan:8080"), ServerOptions(allowed_hosts=("box.lan",)))
    check(head(host="192.168.0.4"), ServerOptions(host="0.0.0.0", allow_unauthenticated=True))
    with pytest.raises(ApiError):
        check(head(host="evil.example"), ServerOptions(host="0.0.0.0", allow_unauthenticated=True))


def test_2_no_name_comes_from_this_machine_only(start: Start) -> None:
    with connected(start().port) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.0\r\n\r\n")
        assert parsed(read(connection)).status == 200
    with pytest.raises(ApiError, match="Host"):
        check(RequestHead("GET", "/v1/models", {}), ServerOptions(host="0.0.0.0", allow_unauthenticated=True))


# 3. Origin


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://127.0.0.1",
        "http://[::1]:5",
        "vscode-webview://abc",
        "app://x",
        "tauri://localhost",
    ],
)
def test_3_local_pages_and_apps(start: Start, origin: str) -> None:
    running = start()
    reply = call(running.port, "POST", CHAT, BODY, {"Origin": origin})
    assert reply.status == 200 and reply.headers["access-control-allow-origin"] == origin
    assert (
        reply.headers["vary"].startswith("origin, ")
        and "access-control-allow-credentials" not in reply.headers
    )
    asked = call(
        running.port, "OPTIONS", CHAT, None, {"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert asked.status == 204 and asked.headers["access-control-allow-private-network"] == "true"


@pytest.mark.parametrize("library", [*JS, "openai for Python", "anthropic for Python"])
def test_3_a_page_may_send_what_the_vendors_libraries_send(start: Start, library: str) -> None:
    """js_headers.json: names by the files of the libraries for pages that have them; those of the libraries
    for Python, which one generator makes too, are asked of them."""
    names = {name for found in JS.get(library, {}).values() for name in found}
    if not names:
        client = (openai.OpenAI if "openai" in library else anthropic.Anthropic)(api_key="k")
        sent = (
            *client.default_headers,
            *client.auth_headers,
            "X-Stainless-Retry-Count",
            "X-Stainless-Timeout",
        )
        names = {name.lower() for name in sent}
    assert len([name for name in names if name.startswith("x-stainless-")]) >= 8
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": ",".join(names)}
    port = start().port
    reply = call(port, "OPTIONS", CHAT, None, {"Origin": "http://localhost:5173", **asked})
    allowed = reply.headers["access-control-allow-headers"].split(", ")
    assert reply.status == 204 and set(allowed) == names
    assert call(port, "OPTIONS", CHAT, None, {"Origin": "http://evil.example", **asked}).status == 403


def test_3_names_of_headers_are_names(start: Start) -> None:
    odd = {"Access-Control-Request-Headers": "x-a, b c, \tx-d\t,,\xe4, e:f"}
    reply = call(start().port, "OPTIONS", CHAT, None, {"Origin": "http://localhost", **odd})
    assert reply.headers["access-control-allow-headers"] == "x-a, x-d"


@pytest.mark.parametrize(
    "origin",
    [
        "http://evil.example",
        "null",
        "http://localhost.evil.example",
        "http://localhost:3000.evil",
        "*",
        "file://",
    ],
)
def test_3_other_pages_run_nothing(start: Start, origin: str) -> None:
    running = start()
    for method in ("POST", "OPTIONS"):
        reply = call(running.port, method, CHAT, BODY if method == "POST" else None, {"Origin": origin})
        assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
    assert not running.worker.jobs


def test_3_named_origins_and_programs_without_one(start: Start) -> None:
    running = start(options=ServerOptions(port=0, allowed_origins=("https://my.page",)))
    reply = call(running.port, "GET", "/v1/models", None, {"Origin": "https://my.page"})
    assert reply.headers["access-control-allow-origin"] == "https://my.page"
    reply = call(running.port, "GET", "/v1/models", None, {"Sec-Fetch-Mode": "cors"})
    assert reply.status == 200 and "access-control-allow-origin" not in reply.headers


# 4. Content type


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", ""],
)
def test_4_json_only(start: Start, kind: str) -> None:
    running = start()
    assert call(running.port, "POST", CHAT, BODY, {"Content-Type": kind}).status == 415
    assert not running.worker.jobs


def test_4_charset_is_fine(start: Start) -> None:
    assert (
        call(start().port, "POST", CHAT, BODY, {"Content-Type": "Application/JSON; charset=utf-8"}).status
        == 200
    )


# 5. API key


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer secret-key"}, 200),
        ({"authorization": "bearer secret-key"}, 200),
        ({"x-api-key": "secret-key"}, 200),
        ({"x-api-key": "secret-ke"}, 401),
        ({"x-api-key": "secret-key2"}, 401),
        ({"Authorization": "Basic secret-key"}, 401),
        ({"Authorization": "Bearer wrong", "x-api-key": "secret-key"}, 401),
        ({"x-api-key": "schlüssel"}, 401),
    ],
)
def test_5_key(start: Start, headers: dict[str, str], status: int) -> None:
    running = start(options=KEY)
    for method, path, body in (("POST", CHAT, BODY), ("GET", "/v1/models", None), ("GET", "/metrics", None)):
        assert call(running.port, method, path, body, headers).status == status
    assert call(running.port, "GET", "/health", None, headers).status == 200
    assert call(running.port, "GET", "/nothing", None, headers).status == (404 if status == 200 else 401)


def test_5_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import hmac

    seen: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def watched(one: bytes, other: bytes) -> bool:
        seen.append((one, other))
        return real(one, other)

    monkeypatch.setattr("hmac.compare_digest", watched)
    with pytest.raises(ApiError):
        check(head(x_api_key="guess"), KEY)
    assert seen == [(b"guess", b"secret-key")]


def test_5_any_key_where_none_is_set(start: Start) -> None:
    assert call(start().port, "GET", "/v1/models", None, {"Authorization": "Bearer whatever"}).status == 200
