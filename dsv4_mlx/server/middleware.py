"""What stands around every route: who may ask, one shape for refusals, slow clients, a line in the log."""

from __future__ import annotations

import asyncio
import secrets
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dsv4_mlx.server.api_errors import Refusal, from_error
from dsv4_mlx.server.guard import Head, check
from dsv4_mlx.server.metrics import Record
from dsv4_mlx.server.options import ServerOptions

_PREFIXES = ("/anthropic/v1", "/anthropic", "/beta/v1", "/beta", "/v1")


@dataclass
class Visit:
    """One HTTP request, as far as the gate knows it; `visit_of` finds it again."""

    head: Head
    id: str = field(default_factory=lambda: f"req_{secrets.token_hex(12)}")
    headers: dict[str, str] = field(default_factory=dict)  # of every answer to it
    status: int = 0  # 0 until an answer begins
    detail: str = ""  # what the log says of it

    def refused(self, refusal: Refusal) -> Response:
        """The answer that says so."""
        family = self.head.family
        return JSONResponse(
            refusal.body(family, self.id), refusal.status_for(family), headers=refusal.headers()
        )


def visit_of(scope: Scope) -> Visit:
    visit: Visit = scope["state"]["visit"]
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
        record: Record,
        crash: Callable[[str], str],
    ) -> None:
        self.app, self.options, self.paths, self.record, self.crash = app, options, paths, record, crash

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = Visit(Head(scope["method"], _tidy(scope["path"]), Headers(scope=scope)))
        visit.headers = {"x-request-id": visit.id, "request-id": visit.id}
        scope.setdefault("state", {})["visit"] = visit
        scope["path"] = path = _route(visit.head.path)
        out = self._watched(visit, send)
        try:
            visit.headers.update(check(visit.head, self.options))
            if scope["state"].get("crowded"):
                most = self.options.limits.connections
                raise Refusal(503, "overloaded", f"more than {most} connections are open", retry_after=5)
            await (_preflight if visit.head.method == "OPTIONS" else self.app)(scope, receive, out)
        except ClientDisconnect:
            visit.status = visit.status or 499  # never sent: for the log
        except Exception as error:
            if visit.status == 0:
                with suppress(ClientDisconnect):
                    await visit.refused(self._refusal(error))(scope, receive, out)
        finally:
            agent = visit.head.headers.get("user-agent", "")
            named = path if path in self.paths else "other"
            self.record.request(visit.id, visit.head.method, named, visit.status, agent, visit.detail)

    def _refusal(self, error: Exception) -> Refusal:
        """What is no refusal is a bug: told without its details, which go into a file."""
        if isinstance(error, Refusal):
            return error
        return from_error(error, self.crash("".join(traceback.format_exception(error))))

    def _watched(self, visit: Visit, send: Send) -> Send:
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
    """A path without doubled and trailing slashes."""
    parts = [part for part in path.split("/") if part]
    return "/" + "/".join(parts)


def _route(path: str) -> str:
    """A path without the prefixes that clients' base addresses bring along."""
    for prefix in _PREFIXES:
        if path.startswith(prefix + "/"):
            return path[len(prefix) :]
    return path
