"""The application: routes and what they answer.

A model's folder -> an application for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dsv4_mlx.engine.engine import fitting
from dsv4_mlx.engine.info import check
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.server import openapi as models
from dsv4_mlx.server.api_errors import ApiError, invalid, too_long
from dsv4_mlx.server.metrics import Metrics
from dsv4_mlx.server.middleware import Gate, base_address_hint, scope_of
from dsv4_mlx.server.openapi import document
from dsv4_mlx.server.options import COUNTED, ServerOptions, limit
from dsv4_mlx.server.protocols import ollama
from dsv4_mlx.server.protocols.fields import flag, parse, text
from dsv4_mlx.server.protocols.ollama import Loaded
from dsv4_mlx.server.protocols.request import ProtocolName, ServerInfo
from dsv4_mlx.server.streaming import Endpoint, ServerContext, map_large
from dsv4_mlx.server.translate import Translator
from dsv4_mlx.tokenizer.template import LEVELS, Prompts, TooManyTokens

PROBE = 2.0  # seconds for the engine thread to say that it lives

_PROTOCOLS: dict[str, ProtocolName] = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/responses": "responses",
    "/messages": "messages",
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
}
_NOT_MADE = {"embeddings": "embeddings", "rerank": "rankings", "images": "images", "audio": "audio"}


class App(Starlette):
    """The ASGI application."""

    def __init__(self, server: ServerContext) -> None:
        self.server, facts = server, server.translator.facts
        routes = [
            Route("/", _say(lambda: models.greeting(facts))),
            Route("/health", self._health),
            Route("/healthz", self._health),
            Route("/metrics", self._metrics),
            Route("/models", _say(lambda: models.listing(facts))),
            Route("/openapi.json", _say(document)),
            Route("/user/balance", _say(lambda: {"is_available": True, "balance_infos": []})),
            Route("/api/version", _say(lambda: {"version": ollama.VERSION})),
            Route("/api/tags", _say(lambda: ollama.tags(facts))),
            Route("/api/ps", _say(lambda: ollama.running(facts))),
            Route("/api/show", self._show, methods=["POST"]),
            Route("/messages/count_tokens", self._count, methods=["POST"]),
            Route("/responses/input_tokens", self._count, methods=["POST"]),
            Route("/tokenize", self._tokenize, methods=["POST"]),
            Route("/detokenize", self._detokenize, methods=["POST"]),
            *(Route(path, Endpoint(server, name), methods=["POST"]) for path, name in _PROTOCOLS.items()),
            Route("/models/{name:path}", self._model),
        ]
        paths = {route.path for route in routes}
        gate = Middleware(Gate, facts.options, paths, server.record, server.crash)
        super().__init__(
            routes=routes,
            middleware=[gate],
            exception_handlers={404: _nothing, 405: _other_method, Loaded: _loaded},
        )
        self.router.redirect_slashes = False

    async def _model(self, request: Request) -> Response:
        """As a POST takes the name: without --strict-model every name is answered."""
        name = request.path_params["name"]
        self.server.translator.check_model(name)
        return JSONResponse({**models.model(self.server.translator.facts), "id": name})

    async def _show(self, request: Request) -> Response:
        """{"model" or "name": NAME} -> what is known of it."""

        def name(raw: bytearray) -> str:
            body = parse(raw, self.server.limits)
            return text(body, "model" if "model" in body else "name").removesuffix(":latest")

        self.server.translator.check_model(await self.server.with_body(request, name))
        return JSONResponse(ollama.show(self.server.translator.facts))

    async def _health(self, request: Request) -> Response:
        worker = self.server.worker
        facts = self.server.translator.facts
        if worker.state == "loading":
            done, total = worker.loaded
            body = {"status": "loading", "model": facts.model, "loaded_bytes": done, "total_bytes": total}
            return JSONResponse(body, 503, {"retry-after": "5"})
        health = await asyncio.to_thread(worker.probe, PROBE)  # requests don't keep these threads busy
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
        return JSONResponse(body, 200 if well else 503)

    async def _metrics(self, request: Request) -> Response:
        page = self.server.record.metrics(self.server.worker)
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _count(self, request: Request) -> Response:
        """Exact: the prompt is rendered as it would be, without a queue; it may exceed the context."""
        server = self.server
        protocol: ProtocolName = "messages" if request.scope["path"].startswith("/messages") else "responses"

        def count(raw: bytearray) -> int:
            ask = server.translator.read(protocol, raw)
            scope_of(request.scope).notice(ask.notices)
            return server.translator.count(ask)

        said = {"input_tokens": await server.with_body(request, count)}
        return JSONResponse(said if protocol == "messages" else {"object": "response.input_tokens", **said})

    async def _tokenize(self, request: Request) -> Response:
        """{"content" or "prompt": text, "parse_special": false} -> its ids."""
        spelling, context = self.server.translator.spelling, self.server.translator.facts.context

        def encode(raw: bytearray) -> list[int]:
            body = parse(raw, self.server.limits)
            given = text(body, "content" if "content" in body else "prompt")
            encoded = spelling.encode_raw if flag(body, "parse_special") else spelling.encode
            try:
                return encoded(given, max(COUNTED, limit(context)))
            except TooManyTokens as error:
                raise too_long(error.count, context, "content", more=True) from None

        ids = await self.server.with_body(request, encode)
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": context})

    async def _detokenize(self, request: Request) -> Response:
        """{"tokens": ids} -> their text."""
        translator = self.server.translator

        def decode(raw: bytearray) -> str:
            ids = parse(raw, self.server.limits).get("tokens")
            if not isinstance(ids, list) or not all(
                type(id) is int and 0 <= id < translator.facts.vocabulary for id in ids
            ):
                raise invalid(f"tokens is not an array of ids below {translator.facts.vocabulary}", "tokens")
            return translator.spelling.decode(ids)

        content = await self.server.with_body(request, decode)
        return JSONResponse({"content": content, "prompt": content})


def _say(what: Callable[[], Any]) -> Callable[[Request], Awaitable[Response]]:
    async def say(request: Request) -> Response:
        return JSONResponse(what())

    return say


async def _nothing(request: Request, error: Exception) -> Response:
    if request.scope["path"].startswith("/responses/"):
        raise ApiError(404, "not_found", "this server stores no responses")
    path = scope_of(request.scope).head.path
    if scope_of(request.scope).head.family == "ollama":
        raise ApiError(404, "not_found", _not_here(request.scope["path"].split("/")[2]))
    if made := _NOT_MADE.get(request.scope["path"].split("/")[1]):
        raise ApiError(404, "not_found", f"{path[:200]!r}: this model makes no {made}, only text")
    hint = base_address_hint(path, _PROTOCOLS)
    raise ApiError(404, "not_found", f"there is nothing at {path[:200]!r}{hint}")


async def _loaded(request: Request, error: Exception) -> Response:
    """A request without a prompt wants the model to be there, which it is."""
    return JSONResponse(cast(Loaded, error).body)


def _not_here(job: str) -> str:
    """What of Ollama's protocol this server leaves out, in a sentence."""
    if job.startswith("embed"):
        return "this model makes no embeddings, only text"
    if job in ("pull", "push", "create", "copy", "delete", "blobs"):
        return "this server runs one model: models are folders, see dsv4-mlx models, download and convert"
    return f"there is nothing at '/api/{job[:60]}'"


async def _other_method(request: Request, error: Exception) -> Response:
    allowed = ", ".join(sorted((cast(HTTPException, error).headers or {})["Allow"].split(", ")))
    visit = scope_of(request.scope)
    refusal = ApiError(405, "method_not_allowed", f"{visit.head.path[:200]!r} takes {allowed}")
    response = visit.refused(refusal)
    response.headers["allow"] = allowed
    return response


def model_facts(
    folder: Path, name: str, options: ServerOptions, context: int | None, expert_memory: str | None
) -> ServerInfo:
    """What is known of a model before it is loaded. Raises UsageError, InputError, DoesNotFit.

    `expert_memory` None: its weights won't be loaded.
    """
    stored = check(folder)
    config = stored.config
    if expert_memory is not None:
        context, _ = fitting(config, stored.manifest, context, expert_memory)
    elif context is None:
        context = DEFAULT_CONTEXT
    levels = LEVELS[stored.manifest.checkpoint]
    return ServerInfo(options, name, levels, config.vocab_size, context, config.max_context)


def make_app(
    folder: Path, facts: ServerInfo, worker: EngineThread, threads: Executor, crash: Callable[[str], str]
) -> App:
    """The application; reads tokenizer and template, which takes a second at full size. Raises InputError."""
    map_large()
    prompts = Prompts(folder, check(folder).manifest.checkpoint)
    translator = Translator.of(folder, facts, prompts)
    return App(ServerContext(translator, worker, threads, facts.options.limits, Metrics(), crash))
