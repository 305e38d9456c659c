"""One turn over HTTP, from its body to its last byte.

Events of the engine thread, awaited on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dsv4_mlx.scheduler.request import Event, Finished, GenerationRequest, Prefill, Started, Token
from dsv4_mlx.server.api_errors import ApiError, from_error
from dsv4_mlx.server.metrics import Metrics, TurnFigures
from dsv4_mlx.server.middleware import RequestScope, scope_of
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.request import ParsedRequest, ProtocolName
from dsv4_mlx.server.protocols.stream import StreamEncoder
from dsv4_mlx.server.service import EngineService
from dsv4_mlx.server.translate import Translator


class EventQueue:
    """`emit` is for the engine thread and never blocks; `next` for one task of the loop.

    What a slow client has not taken waits here: at most the answer's tokens, and only until it is dropped.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._ready = asyncio.Event()
        self._called = False  # a wake-up is under way: no second one until it has come
        self.gone = False  # the client has left

    def emit(self, event: Event) -> None:
        self._events.append(event)
        if not self._called:
            self._called = True
            with suppress(RuntimeError):  # the loop has ended, and with it every reader
                self._loop.call_soon_threadsafe(self._ready.set)

    def leave(self) -> None:
        """The client has left: wakes `next`."""
        self.gone = True
        self._ready.set()

    async def next(self, timeout: float) -> list[Event]:
        """What has happened since; empty after `timeout` seconds, or if the client has left."""
        if not self._events and not self.gone:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await self._ready.wait()
        self._ready.clear()
        self._called = False
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events


FIRST_SIGN = 1.0  # seconds within which a stream says something
STREAM = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
JSON = {"content-type": "application/json"}


@dataclass
class ServerContext:
    """The service window: what every exchange needs."""

    intake: Translator
    worker: EngineService
    threads: Executor
    limits: ServerLimits
    record: Metrics
    crash: Callable[[str], str]  # a traceback -> the file it was written to

    async def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Run `work` beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, work, *arguments)


@dataclass
class Exchange:
    """One turn under way."""

    counter: ServerContext
    ask: ParsedRequest
    job: GenerationRequest
    wire: StreamEncoder
    visit: RequestScope
    send: Send
    feed: EventQueue = field(default_factory=EventQueue)
    sampled: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    opened: bool = False
    ended: str | None = None  # how: stop, length, or the code of a refusal
    refusal: ApiError | None = None

    def take(self, events: list[Event]) -> list[str]:
        """Events -> frames of the stream."""
        frames: list[str] = []
        for event in events:
            if self.ended is not None:
                break
            if isinstance(event, Token):
                self._token(event, frames)
            elif isinstance(event, Prefill):
                self.done, self.total = event.done, event.total
                self.open(frames, event.cached)
            elif isinstance(event, Started):
                self.open(frames, event.cached)
                frames += self.wire.started(event.cached)
            elif isinstance(event, Finished):
                self._finished(event, frames)
        return frames

    def figures(self) -> TurnFigures:
        """What is counted of it."""
        wire, new = self.wire, len(self.sampled)
        return TurnFigures(wire.prompt_tokens, wire.cached, new, self.began, self.first_token, self.ended)

    def open(self, frames: list[str], cached: int) -> None:
        if not self.opened and self.ask.stream:
            self.opened = True
            frames += self.wire.open(cached)

    def _token(self, token: Token, frames: list[str]) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.sampled.append(token.id)
        frames += self.wire.token(token)
        if self.wire.over:
            frames += self.wire.finish(length=False)
            self.ended = "stop"

    def _finished(self, event: Finished, frames: list[str]) -> None:
        if event.reason in ("stop", "length"):
            frames += self.wire.finish(length=event.reason == "length")
            self.ended = event.reason
            if event.reason == "stop" and self.ask.conversation is not None:
                turns = self.counter.intake.turns
                turns.remember(self.job.prompt, self.sampled, self.wire.said(), self.wire.handle)
            return
        if event.error is None:
            self.refusal = ApiError(503, "unavailable", "the server is shutting down", retry_after=5)
        else:
            self.refusal = _told(event.error, self.counter)
        self.ended = self.refusal.code
        if self.ask.stream:
            frames += self.wire.failed(self.refusal, self.visit.id)

    async def start(self, headers: dict[str, str]) -> None:
        await self.send({"type": "http.response.start", "status": 200, "headers": Headers(headers).raw})

    async def piece(self, text: str, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": text.encode(), "more_body": more})


@dataclass(frozen=True)
class Endpoint:
    """The endpoint of one protocol. Raises Refusal before anything was sent, and ClientDisconnect."""

    counter: ServerContext
    protocol: ProtocolName

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        counter, visit = self.counter, scope_of(scope)
        _check_ready(counter.worker)
        raw = await body_of(Request(scope, receive), counter.limits)
        ask: ParsedRequest = await counter.call(counter.intake.read, self.protocol, raw)
        job: GenerationRequest = await counter.call(counter.intake.job, ask)
        wire = counter.intake.wire(ask, job)
        turn = Exchange(counter, ask, job, wire, visit, send)
        try:
            ticket = counter.worker.submit(job, turn.feed.emit)
        except Exception as error:  # what each kind means to a client: api_errors.py
            raise _told(error, counter) from None
        watch = asyncio.create_task(_watch(receive, turn.feed))
        try:
            await (_stream(turn) if ask.stream else _plain(turn, scope, receive))
        except ClientDisconnect:
            turn.ended = "client_disconnected"
            raise
        except ApiError:
            raise
        except Exception as error:  # a bug: a stream that has begun ends with its own kind of error
            refusal = _told(error, counter)
            turn.ended = refusal.code
            if not visit.status:
                raise refusal from None
            await turn.piece("".join(wire.failed(refusal, visit.id)) if ask.stream else "", more=False)
        finally:
            ticket.cancel()
            watch.cancel()
            visit.detail = counter.record.turn(turn.figures())


async def _stream(turn: Exchange) -> None:
    limits = turn.counter.limits
    await turn.start(STREAM)
    spoken = time.monotonic() + FIRST_SIGN - limits.keep_alive
    while turn.ended is None:
        events = await turn.feed.next(max(0.0, spoken + limits.keep_alive - time.monotonic()))
        if turn.feed.gone:
            raise ClientDisconnect
        frames = turn.take(events)
        if not frames and time.monotonic() >= spoken + limits.keep_alive:
            if turn.opened:
                frames = turn.wire.keep_alive(turn.done, turn.total)
            else:
                turn.open(frames, 0)
        if frames:
            await turn.piece("".join(frames))
            spoken = time.monotonic()
    await turn.piece("", more=False)


async def _plain(turn: Exchange, scope: Scope, receive: Receive) -> None:
    """Blank lines keep a long silence from looking like death; JSON readers skip them."""
    limits, visit = turn.counter.limits, turn.visit
    due = turn.began + limits.silent_time
    while turn.ended is None:
        turn.take(await turn.feed.next(max(0.0, due - time.monotonic())))
        if turn.feed.gone:
            raise ClientDisconnect
        if turn.ended is None and time.monotonic() >= due:
            if not visit.status:
                await turn.start(JSON)
            await turn.piece("\n")
            due = time.monotonic() + limits.keep_alive
    if turn.refusal is not None and not visit.status:
        raise turn.refusal
    answer = turn.wire.answer() if turn.refusal is None else turn.refusal.body(turn.ask.family, visit.id)
    if visit.status:
        await turn.piece(json.dumps(answer, ensure_ascii=False, separators=(",", ":")), more=False)
    else:
        hit, miss = turn.wire.cached, turn.wire.prompt_tokens - turn.wire.cached
        reply = JSONResponse(answer, headers={"x-dsv4-cache": f"hit={hit}; miss={miss}"})
        await reply(scope, receive, turn.send)


async def _watch(receive: Receive, feed: EventQueue) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    feed.leave()


async def body_of(request: Request, limits: ServerLimits) -> bytes:
    """The request's body. Raises Refusal 413 as soon as it is too large, 408 if it comes too slowly."""
    body = bytearray()  # grows in one place: pieces would leave holes
    try:
        async with asyncio.timeout(limits.body_time):
            async for piece in request.stream():
                if len(body) + len(piece) > limits.body:
                    raise ApiError(413, "request_too_large", f"the body is larger than {limits.body} bytes")
                body += piece
    except TimeoutError:
        raise ApiError(408, "timeout", f"the body took longer than {limits.body_time:g} s") from None
    return bytes(body)


def _check_ready(worker: EngineService) -> None:
    if worker.state == "loading":
        raise ApiError(503, "unavailable", "the model is loading", retry_after=5)
    if worker.state != "ready":
        raise ApiError(503, "unavailable", f"the engine is {worker.state}", retry_after=5)


def _told(error: BaseException, counter: ServerContext) -> ApiError:
    import traceback

    refusal = from_error(error)
    if refusal.status == 500 and not hasattr(error, "exit_code"):
        detail = "".join(traceback.format_exception(error))
        refusal = from_error(error, counter.crash(detail))
    return refusal
