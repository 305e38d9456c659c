"""One exchange over HTTP, from its body to its last byte.

Events of the engine thread, awaited on the event loop.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from dsv4_mlx.engine.decode import Event, Finished, PrefillProgress, Token
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.server.api_errors import ApiError, from_error
from dsv4_mlx.server.metrics import Metrics, TurnFigures
from dsv4_mlx.server.middleware import RequestScope, scope_of
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.request import ParsedRequest, ProtocolName
from dsv4_mlx.server.protocols.stream import StreamEncoder
from dsv4_mlx.server.translate import Translator

T = TypeVar("T")
_M_MMAP_THRESHOLD = -3  # malloc.h


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


LARGE_READ = 4  # large bodies that are in memory at once
NOTICED = 1 << 18  # bytes of a body whose memory is worth giving back
SETTLED = 0.5  # seconds after it until that memory is free
PREFILL_LOG = 10.0  # seconds between lines of the log that say how far a prompt is
FIRST_SIGN = 1.0  # seconds within which a stream says something
STREAM = {
    "cache-control": "no-cache, no-transform",
    "x-accel-buffering": "no",
}
JSON = {"content-type": "application/json"}


@dataclass
class ServerContext:
    """What every exchange needs."""

    translator: Translator
    worker: EngineThread
    threads: Executor
    limits: ServerLimits
    record: Metrics
    crash: Callable[[str], str]  # a traceback -> the file it was written to
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LARGE_READ))
    working: asyncio.Lock = field(default_factory=asyncio.Lock)
    settling: bool = False  # memory is given back soon

    async def with_body(self, request: Request, work: Callable[[bytearray], T]) -> T:
        """What `work` makes of the body, beside the event loop. Raises ApiError, and what `work` does.

        Of large bodies one at a time is worked on and LARGE_READ are read: the others wait outside this
        program, but for their beginning.
        """
        body, size, large = bytearray(), 0, False  # grows in one place: pieces would leave holes
        try:
            async with asyncio.timeout(self.limits.body_time):
                async for piece in request.stream():
                    size += len(piece)
                    if size > self.limits.body:
                        raise ApiError(
                            413, "request_too_large", f"the body is larger than {self.limits.body} bytes"
                        )
                    body += piece
                    if size > self.limits.large and not large:
                        await self.reading.acquire()
                        large = True
            if not large:
                return await self._call(work, body)
            async with self.working:
                try:
                    return await self._call(work, body)
                finally:
                    await self._call(lambda body: give_back(), body)
        except TimeoutError:
            if size > self.limits.large and not large:
                raise ApiError(503, "overloaded", "other large bodies come first", retry_after=5) from None
            raise ApiError(408, "timeout", f"the body took longer than {self.limits.body_time:g} s") from None
        finally:
            if large:
                self.reading.release()
            if size > NOTICED and not self.settling:
                self.settling = True
                asyncio.get_running_loop().call_later(SETTLED, self._give_back)

    async def _call(self, work: Callable[[bytearray], T], body: bytearray) -> T:
        def lean() -> T:
            try:
                return work(body)
            except ApiError as refusal:  # as an answer: without the frames that hold what was read
                refusal.__context__ = refusal.__traceback__ = None
                raise

        return await asyncio.get_running_loop().run_in_executor(self.threads, lean)

    def _give_back(self) -> None:
        self.settling = False
        with suppress(RuntimeError):  # the threads have ended, and with them the program
            self.threads.submit(give_back)


@dataclass
class Exchange:
    """One request and its answer, under way."""

    server: ServerContext
    ask: ParsedRequest
    job: GenerationRequest
    encoder: StreamEncoder
    visit: RequestScope
    send: Send
    feed: EventQueue = field(default_factory=EventQueue)
    sampled: list[int] = field(default_factory=list)
    done: int = 0
    total: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    logged: float = field(default_factory=time.monotonic)  # when the log last heard of it
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
            elif isinstance(event, PrefillProgress):
                self.done, self.total = event.done, event.total
                self._log_prefill()
                self.encoder.scored(event.scores)
                self.open(frames, event.cached)
                if event.done == event.total:
                    frames += self.encoder.started(event.cached)
            else:
                self._finished(event, frames)
        return frames

    def figures(self) -> TurnFigures:
        """What is counted of it."""
        encoder, new = self.encoder, len(self.sampled)
        return TurnFigures(
            encoder.prompt_tokens, encoder.cached, new, self.began, self.first_token, self.ended
        )

    def open(self, frames: list[str], cached: int) -> None:
        if not self.opened and self.ask.stream:
            self.opened = True
            frames += self.encoder.open(cached)

    def _log_prefill(self) -> None:
        now = time.monotonic()
        if now - self.logged >= PREFILL_LOG:
            self.logged = now
            self.server.record.prefill(self.visit.id, self.done, self.total, now - self.began)

    def _token(self, token: Token, frames: list[str]) -> None:
        if self.first_token is None:
            self.first_token = time.monotonic()
        self.sampled.append(token.id)
        frames += self.encoder.token(token)
        if self.encoder.over:
            frames += self.encoder.finish(length=False)
            self.ended = "stop"

    def _finished(self, event: Finished, frames: list[str]) -> None:
        if event.reason in ("stop", "length"):
            frames += self.encoder.finish(length=event.reason == "length")
            self.ended = event.reason
            if event.reason == "stop" and self.ask.conversation is not None:
                turns = self.server.translator.turns
                turns.remember(self.job.prompt, self.sampled, self.encoder.completion(), self.encoder.handle)
            return
        if event.error is None:
            self.refusal = ApiError(503, "unavailable", "the server is shutting down", retry_after=5)
        else:
            self.refusal = _told(event.error, self.server)
        self.ended = self.refusal.code
        if self.ask.stream:
            frames += self.encoder.failed(self.refusal, self.visit.id)

    async def start(self, headers: dict[str, str]) -> None:
        await self.send({"type": "http.response.start", "status": 200, "headers": Headers(headers).raw})

    async def piece(self, text: str, *, more: bool = True) -> None:
        await self.send({"type": "http.response.body", "body": text.encode(), "more_body": more})


@dataclass(frozen=True)
class Endpoint:
    """The endpoint of one protocol. Raises ApiError before anything was sent, and ClientDisconnect."""

    server: ServerContext
    protocol: ProtocolName

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        server, visit = self.server, scope_of(scope)
        _check_ready(server.worker)

        def read(raw: bytearray) -> tuple[ParsedRequest, GenerationRequest]:
            ask = server.translator.read(self.protocol, raw)
            visit.notice(ask.notices)
            return ask, server.translator.job(ask)

        ask, job = await server.with_body(Request(scope, receive), read)
        encoder = server.translator.encoder(ask, job)
        exchange = Exchange(server, ask, job, encoder, visit, send)
        try:
            ticket = server.worker.submit(job, exchange.feed.emit)
        except Exception as error:  # what each kind means to a client: api_errors.py
            raise _told(error, server) from None
        watch = asyncio.create_task(_watch(receive, exchange.feed))
        try:
            await (_stream(exchange) if ask.stream else _plain(exchange, scope, receive))
        except ClientDisconnect:
            exchange.ended = "client_disconnected"
            raise
        except ApiError:
            raise
        except Exception as error:  # a bug: a stream that has begun ends with its own kind of error
            refusal = _told(error, server)
            exchange.ended = refusal.code
            if not visit.status:
                raise refusal from None
            await exchange.piece("".join(encoder.failed(refusal, visit.id)) if ask.stream else "", more=False)
        finally:
            ticket.cancel()
            watch.cancel()
            visit.detail = server.record.turn(exchange.figures())


async def _stream(exchange: Exchange) -> None:
    limits = exchange.server.limits
    await exchange.start({**STREAM, "content-type": exchange.encoder.content_type})
    spoken = time.monotonic() + FIRST_SIGN - limits.keep_alive
    while exchange.ended is None:
        events = await exchange.feed.next(max(0.0, spoken + limits.keep_alive - time.monotonic()))
        if exchange.feed.gone:
            raise ClientDisconnect
        frames = exchange.take(events)
        if not frames and time.monotonic() >= spoken + limits.keep_alive:
            if exchange.opened:
                frames = exchange.encoder.keep_alive(exchange.done, exchange.total)
            else:
                exchange.open(frames, 0)
        if frames:
            await exchange.piece("".join(frames))
            spoken = time.monotonic()
    await exchange.piece("", more=False)


async def _plain(exchange: Exchange, scope: Scope, receive: Receive) -> None:
    """Blank lines keep a long silence from looking like death; JSON readers skip them."""
    limits, visit = exchange.server.limits, exchange.visit
    due = exchange.began + limits.silent_time
    while exchange.ended is None:
        exchange.take(await exchange.feed.next(max(0.0, due - time.monotonic())))
        if exchange.feed.gone:
            raise ClientDisconnect
        if exchange.ended is None and time.monotonic() >= due:
            if not visit.status:
                await exchange.start(JSON)
            await exchange.piece("\n")
            due = time.monotonic() + limits.keep_alive
    if exchange.refusal is not None and not visit.status:
        raise exchange.refusal
    answer = (
        exchange.encoder.answer()
        if exchange.refusal is None
        else exchange.refusal.body(exchange.ask.family, visit.id)
    )
    if visit.status:
        await exchange.piece(json.dumps(answer, ensure_ascii=False, separators=(",", ":")), more=False)
    else:
        hit, miss = exchange.encoder.cached, exchange.encoder.prompt_tokens - exchange.encoder.cached
        reply = JSONResponse(answer, headers={"x-dsv4-cache": f"hit={hit}; miss={miss}"})
        await reply(scope, receive, exchange.send)


async def _watch(receive: Receive, feed: EventQueue) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    feed.leave()


def map_large() -> None:
    """Let the C library map large blocks one by one: glibc ends that after the first that is freed, and then
    keeps their place in each thread's heap for ever."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 18)


def give_back() -> None:
    """What is free of the C library's memory -> the system. glibc keeps it; macOS does it by itself."""
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def _check_ready(worker: EngineThread) -> None:
    if worker.state == "loading":
        raise ApiError(503, "unavailable", "the model is loading", retry_after=5)
    if worker.state != "ready":
        raise ApiError(503, "unavailable", f"the engine is {worker.state}", retry_after=5)


def _told(error: BaseException, server: ServerContext) -> ApiError:
    import traceback

    refusal = from_error(error)
    if refusal.status == 500 and not hasattr(error, "exit_code"):
        detail = "".join(traceback.format_exception(error))
        refusal = from_error(error, server.crash(detail))
    return refusal
