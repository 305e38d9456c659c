"""What stands around every route: who may ask, one shape for refusals, slow clients, a line in the log.

Who may ask: decided from the head of a request, before any of its body is read.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import secrets
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4_mlx.server.api_errors import ApiError, Family, from_error
from dsv4_mlx.server.metrics import Metrics, escaped, without_values
from dsv4_mlx.server.options import ServerOptions

_LOCAL = ("localhost", "127.0.0.1", "::1", "host.docker.internal")
_LOCAL_ORIGIN = re.compile(r"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d{1,5})?", re.IGNORECASE)
_APP_ORIGINS = ("vscode-webview://", "vscode-file://", "app://", "tauri://")
_USUAL_HEADERS = "authorization, content-type, x-api-key, anthropic-version, anthropic-beta"
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9a-z-]{1,100}")  # a token of RFC 9110
NOTICE = "x-dsv4-notice"  # a header: what of the request has no effect on the answer
OPEN_PATHS = ("/", "/health", "/healthz", "/v1/health")  # say nothing that needs a key


@dataclass(frozen=True)
class RequestHead:
    """What the guard looks at. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]

    @property
    def family(self) -> Family:
        """Whose error shapes the client reads."""
        path = self.path.removeprefix("/v1")
        if re.match(r"/api/(?!v\d)", path):
            return "ollama"
        theirs = path.startswith(("/messages", "/anthropic")) or "anthropic-version" in self.headers
        return "anthropic" if theirs else "openai"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address to listen on."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check(head: RequestHead, options: ServerOptions) -> dict[str, str]:
    """Headers that the answer carries for this client's sake (CORS). Raises ApiError."""
    size = sum(len(name) + len(value) for name, value in head.headers.items())
    if size > options.limits.headers:
        raise ApiError(
            431,
            "headers_too_large",
            f"the headers have {size} bytes, expected at most {options.limits.headers}",
        )
    _check_host(head.headers.get("host"), options)
    allowed = _check_origin(head.headers, options)
    if head.method == "OPTIONS":
        return allowed
    if head.path not in OPEN_PATHS:
        _check_key(head.headers, options)
    if head.method == "POST":
        _check_body(head.headers, options)
    return allowed


def _check_host(host: str | None, options: ServerOptions) -> None:
    """A page of another site whose name was pointed here sends that name: refused."""
    if host is None and is_loopback(options.host):  # HTTP/1.0, from this machine
        return
    name = _name(host or "")
    if name in _LOCAL or name.endswith(".localhost") or name == _name(options.host):
        return
    if name in (_name(allowed) for allowed in options.allowed_hosts):
        return
    if not is_loopback(options.host) and (options.api_key is not None or _is_address(name)):
        return
    raise ApiError(
        403,
        "host_not_allowed",
        f"the Host header names {name[:80]!r}; start the server with --allowed-host for it",
    )


def _name(host: str) -> str:
    """The name of "name:port" or "[address]:port", in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host if host.count(":") > 1 else host.partition(":")[0].rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_origin(headers: Mapping[str, str], options: ServerOptions) -> dict[str, str]:
    origin = headers.get("origin")
    if origin is None:  # every program that is no browser
        return {}
    ours = (
        _LOCAL_ORIGIN.fullmatch(origin)
        or origin.startswith(_APP_ORIGINS)
        or origin in options.allowed_origins
    )
    if not ours:
        raise ApiError(
            403,
            "origin_not_allowed",
            f"the Origin header names {origin[:80]!r}; start the server with --cors for it",
        )
    return {
        "access-control-allow-origin": origin,
        "access-control-allow-methods": "GET, HEAD, POST, OPTIONS",
        "access-control-allow-headers": _wanted_headers(headers.get("access-control-request-headers", "")),
        "access-control-allow-private-network": "true",
        "access-control-expose-headers": f"x-request-id, request-id, retry-after, x-dsv4-cache, {NOTICE}",
        "access-control-max-age": "600",
        "vary": "origin, access-control-request-headers",
    }


def _wanted_headers(asked: str) -> str:
    """The headers that a page of an allowed origin means to send: every library has more of its own."""
    names = [name.strip().lower() for name in asked.split(",")]
    return ", ".join(name for name in names if _HEADER_NAME.fullmatch(name)) or _USUAL_HEADERS


def _check_key(headers: Mapping[str, str], options: ServerOptions) -> None:
    if options.api_key is None:
        return
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), options.api_key.encode()):
        raise ApiError(401, "invalid_api_key", "the API key is wrong or missing")


def _check_body(headers: Mapping[str, str], options: ServerOptions) -> None:
    """A form or plain text, which any web page may send unasked, is refused."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415, "unsupported_media_type", f"the content type is {kind[:80]!r}, expected application/json"
        )
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise ApiError(
            415, "unsupported_media_type", f"the body is compressed ({coding[:40]!r}), expected it plain"
        )
    length = headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > options.limits.body:
        raise ApiError(413, "request_too_large", f"the body is larger than {options.limits.body} bytes")


_PREFIXES = ("/anthropic/v1", "/anthropic", "/v1/beta", "/beta/v1", "/beta", "/v1")
_ABSOLUTE = re.compile(r"https?://[^/]*", re.IGNORECASE)  # RFC 9112, 3.2.2: a server takes it too


@dataclass
class RequestScope:
    """One HTTP request, as far as the gate knows it; `scope_of` finds it again."""

    head: RequestHead
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    headers: dict[str, str] = field(default_factory=dict)  # of every answer to it
    status: int = 0  # 0 until an answer begins
    detail: str = ""  # what the log says of it
    notices: tuple[str, ...] = ()  # what of it has no effect on the answer

    def notice(self, notices: tuple[str, ...]) -> None:
        """Say in a header of the answer and in the log what was passed over."""
        if notices:
            self.notices = notices
            self.headers[NOTICE] = escaped("; ".join(notices)).encode("ascii", "replace").decode()[:2000]

    def refused(self, refusal: ApiError) -> Response:
        """The answer that says so."""
        family = self.head.family
        self.detail = f" {refusal.code}: {without_values(refusal.message)}{self.detail}"
        return JSONResponse(
            refusal.body(family, self.id), refusal.status_for(family), headers=refusal.headers()
        )


def scope_of(scope: Scope) -> RequestScope:
    visit: RequestScope = scope["state"]["visit"]
    return visit


class Gate:
    """The outermost middleware. Behind it paths have no prefix.

    `send` raises ClientDisconnect if the client takes nothing for too long.
    """

    def __init__(
        self,
        app: ASGIApp,
        options: ServerOptions,
        paths: Collection[str],
        record: Metrics,
        crash: Callable[[str], str],
    ) -> None:
        self.app, self.options, self.paths, self.record, self.crash = app, options, paths, record, crash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = RequestScope(RequestHead(scope["method"], _tidy(scope["path"]), Headers(scope=scope)))
        visit.headers = {"x-request-id": visit.id, "request-id": visit.id}
        scope.setdefault("state", {})["visit"] = visit
        scope["path"] = path = _route(visit.head.path)
        out = self._watched(visit, send)
        named = path if path in self.paths else "other"
        agent = visit.head.headers.get("user-agent", "")
        if visit.head.method == "POST":
            self.record.arrived(visit.id, visit.head.method, visit.head.path, agent)
        try:
            visit.headers.update(check(visit.head, self.options))
            if scope["state"].get("crowded"):
                most = self.options.limits.connections
                raise ApiError(503, "overloaded", f"more than {most} connections are open", retry_after=5)
            await (_preflight if visit.head.method == "OPTIONS" else self.app)(scope, receive, out)
        except ClientDisconnect:
            visit.status = visit.status or 499  # never sent: for the log
        except Exception as error:
            if visit.status == 0:
                with suppress(ClientDisconnect):
                    await visit.refused(self._refusal(error))(scope, receive, out)
        finally:
            said = visit.detail + "".join(f"; {notice}" for notice in visit.notices)
            method, shown = visit.head.method, visit.head.path
            self.record.request(visit.id, method, named, shown, visit.status, agent, said)

    def _refusal(self, error: Exception) -> ApiError:
        """What is no refusal is a bug: told without its details, which go into a file."""
        if isinstance(error, ApiError):
            return error
        return from_error(error, self.crash("".join(traceback.format_exception(error))))

    def _watched(self, visit: RequestScope, send: Send) -> Send:
        """`send` with a time limit, which keeps the status and adds the headers of every answer."""

        async def out(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                message = {**message, "headers": [*Headers(visit.headers).raw, *message["headers"]]}
            try:
                async with asyncio.timeout(self.options.limits.drain_time):
                    await send(message)
            except (TimeoutError, OSError):
                raise ClientDisconnect from None

        return out


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    await Response(status_code=204, headers={"allow": "GET, HEAD, POST, OPTIONS"})(scope, receive, send)


def _tidy(path: str) -> str:
    """A path without scheme and authority, doubled and trailing slashes."""
    if begin := _ABSOLUTE.match(path):
        path = path[begin.end() :]
    parts = [part for part in path.split("/") if part]
    return "/" + "/".join(parts)


def _route(path: str) -> str:
    """A path without the prefixes that clients' base addresses bring along."""
    for prefix in _PREFIXES:
        if path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return path


def base_address_hint(path: str, paths: Collection[str]) -> str:
    """What to do next where a wrong base address is the likely reason that there is nothing at `path`."""
    rest = path
    while (tail := rest.partition("/")[2].partition("/")[2]) and "/" + tail not in paths:
        rest = "/" + tail
    if not tail:
        return ""
    base = "http://HOST:PORT" if tail.startswith("messages") else "http://HOST:PORT/v1"
    return f"; the base address is {base}"
