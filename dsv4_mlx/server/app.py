"""Routes, and what stands around every one of them."""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from dsv4_mlx.server import models
from dsv4_mlx.server.asgi import Receive, Scope, Send
from dsv4_mlx.server.ask import Ask, Protocol
from dsv4_mlx.server.body import parse
from dsv4_mlx.server.deliver import Counter, Left, Reply, body_of, exchange
from dsv4_mlx.server.fields import flag, text
from dsv4_mlx.server.guard import Head, check
from dsv4_mlx.server.openapi import document
from dsv4_mlx.server.refusal import Refusal, from_error, invalid

PROBE = 2.0  # seconds for the engine thread to say that it lives

_PROTOCOLS: dict[str, Protocol] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
}
_PREFIXES = ("/anthropic/v1", "/anthropic", "/beta/v1", "/beta", "/v1")


@dataclass(frozen=True)
class Request:
    """One request that has passed the guard. `route`: its path without prefix."""

    head: Head
    route: str
    scope: Scope
    receive: Receive
    reply: Reply


Handler = Callable[[Request], Awaitable[None]]


class App:
    """The ASGI application."""

    def __init__(self, counter: Counter) -> None:
        facts = counter.intake.facts
        self.options, self.counter = facts.options, counter
        self._routes: dict[str, dict[str, Handler]] = {
            "/": {"GET": self._say(lambda: models.greeting(facts))},
            "/health": {"GET": self._health},
            "/healthz": {"GET": self._health},
            "/metrics": {"GET": self._metrics},
            "/models": {"GET": self._say(lambda: models.listing(facts))},
            "/openapi.json": {"GET": self._say(document)},
            "/user/balance": {"GET": self._say(lambda: {"is_available": True, "balance_infos": []})},
            "/messages/count_tokens": {"POST": self._count},
            "/responses/input_tokens": {"POST": self._count},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            **{route: {"POST": self._answer} for route in _PROTOCOLS},
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._http(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = Head(scope["method"], _tidy(scope["path"]), _headers(scope))
        request_id = f"req_{secrets.token_hex(12)}"
        reply = Reply(
            _bodyless(send) if head.method == "HEAD" else send,
            self.counter.limits,
            {"x-request-id": request_id, "request-id": request_id},
        )
        route = _route(head.path)
        try:
            reply.headers.update(check(head, self.options))
            await self._handler(head, route)(Request(head, route, scope, receive, reply))
        except Refusal as refusal:
            await self._refused(reply, refusal, head)
        except Left:
            reply.status = reply.status or 499  # never sent: for the log
        except Exception as error:  # a bug: told without its details, which go into a file
            log = self.counter.crash(traceback.format_exc())
            await self._refused(reply, from_error(error, log), head)
        finally:
            named = route if route in self._routes else "other"
            agent = head.headers.get("user-agent", "")
            self.counter.record.request(request_id, head.method, named, reply.status, agent, reply.detail)

    async def _refused(self, reply: Reply, refusal: Refusal, head: Head) -> None:
        if reply.status == 0:
            with suppress(Left):
                await reply.refuse(refusal, head.family)

    def _handler(self, head: Head, route: str) -> Handler:
        if head.method == "OPTIONS":
            return self._preflight
        if route.startswith("/models/"):
            return self._model
        if route.startswith("/responses/") and route not in self._routes:
            raise Refusal(404, "not_found", "this server stores no responses")
        methods = self._routes.get(route)
        if methods is None:
            raise Refusal(404, "not_found", f"there is nothing at {head.path[:200]!r}")
        handler = methods.get("GET" if head.method == "HEAD" else head.method)
        if handler is None:
            raise Refusal(405, "method_not_allowed", f"{head.path[:200]!r} takes {' and '.join(methods)}")
        return handler

    async def _preflight(self, request: Request) -> None:
        await request.reply.start(204, {"allow": "GET, HEAD, POST, OPTIONS"})
        await request.reply.piece("", more=False)

    async def _answer(self, request: Request) -> None:
        await exchange(self.counter, _PROTOCOLS[request.route], request.scope, request.receive, request.reply)

    def _say(self, what: Callable[[], Any]) -> Handler:
        async def say(request: Request) -> None:
            await request.reply.whole(200, what())

        return say

    async def _model(self, request: Request) -> None:
        if request.head.method not in ("GET", "HEAD"):
            raise Refusal(405, "method_not_allowed", "models can be read only")
        one = models.model(self.counter.intake.facts)
        name = request.route.removeprefix("/models/")
        if name != one["id"]:
            raise Refusal(
                404, "model_not_found", f"there is no model {name[:80]!r}, only {one['id']}", "model"
            )
        await request.reply.whole(200, one)

    async def _health(self, request: Request) -> None:
        worker = self.counter.worker
        facts = self.counter.intake.facts
        if worker.state == "loading":
            done, total = worker.loaded
            body = {"status": "loading", "model": facts.model, "loaded_bytes": done, "total_bytes": total}
            await request.reply.whole(503, body, {"retry-after": "5"})
            return
        health = await self.counter.call(worker.probe, PROBE)
        stats = worker.stats()
        well = health.state == "ready" and health.answered
        body = {
            "status": "ok" if well else "unhealthy" if health.state == "ready" else health.state,
            "model": facts.model,
            "ctx": facts.context,
            "queue": stats.queued,
            "active": stats.active,
            "stalled_seconds": round(health.stalled, 1),
        }
        await request.reply.whole(200 if well else 503, body)

    async def _metrics(self, request: Request) -> None:
        page = self.counter.record.metrics(self.counter.worker)
        await request.reply.whole(200, page, {"content-type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _count(self, request: Request) -> None:
        """Exact: the prompt is rendered as it would be, without a queue and without a limit."""
        counter = self.counter
        raw = await body_of(request.scope, request.receive, counter.limits)
        protocol: Protocol = "messages" if request.route.startswith("/messages") else "responses"
        ask: Ask = await counter.call(counter.intake.read, protocol, raw)
        count = len(await counter.call(counter.intake.rendered, ask))
        said = {"input_tokens": count}
        await request.reply.whole(
            200, said if protocol == "messages" else {"object": "response.input_tokens", **said}
        )

    async def _tokenize(self, request: Request) -> None:
        """{"content" or "prompt": text, "parse_special": false} -> its ids."""
        body = parse(await body_of(request.scope, request.receive, self.counter.limits), self.counter.limits)
        spelling = self.counter.intake.spelling
        given = text(body, "content" if "content" in body else "prompt")
        encode = spelling.encode_raw if flag(body, "parse_special") else spelling.encode
        ids = await self.counter.call(encode, given)
        facts = self.counter.intake.facts
        await request.reply.whole(200, {"tokens": ids, "count": len(ids), "max_model_len": facts.context})

    async def _detokenize(self, request: Request) -> None:
        """{"tokens": ids} -> their text."""
        body = parse(await body_of(request.scope, request.receive, self.counter.limits), self.counter.limits)
        intake = self.counter.intake
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(
            type(id) is int and 0 <= id < intake.facts.vocabulary for id in ids
        ):
            raise invalid(f"tokens is not an array of ids below {intake.facts.vocabulary}", "tokens")
        content = await self.counter.call(intake.spelling.decode, ids)
        await request.reply.whole(200, {"content": content, "prompt": content})


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


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def _bodyless(send: Send) -> Send:
    """HEAD: the same head, no body."""

    async def sent(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return sent


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
