"""The server's life: listen, say so, serve, and stop in order when told."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dsv4_mlx.errors import EXIT_INTERRUPT, EXIT_TERMINATED, MachineError, UsageError
from dsv4_mlx.scheduler.engine_thread import EngineThread
from dsv4_mlx.server.app import App
from dsv4_mlx.server.crowd import Crowd, Door, without_exhausted
from dsv4_mlx.server.middleware import is_loopback
from dsv4_mlx.server.options import ServerOptions

BACKLOG = 128  # connections that wait to be accepted
IDLE_TIME = 75  # seconds that a connection without a request is kept
_EVERYWHERE = ("0.0.0.0", "::", "")
_NO_FAMILY = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
_CODES = {signal.SIGINT: EXIT_INTERRUPT, signal.SIGTERM: EXIT_TERMINATED}


def check_bind(options: ServerOptions) -> None:
    """Raises UsageError for an address that others can reach, without a key and without saying so."""
    if is_loopback(options.host) or options.api_key is not None or options.allow_unauthenticated:
        return
    raise UsageError(
        f"--host {options.host} can be reached by other machines, and there is no API key",
        next="set DSV4_API_KEY or give --api-key-file; or --allow-unauthenticated: everybody may",
    )


def listen(options: ServerOptions) -> list[socket.socket]:
    """Listening sockets; for `localhost` of both families. Raises UsageError, MachineError."""
    check_bind(options)
    try:
        found = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise UsageError(f"--host {options.host!r} is no address of this machine: {error.strerror}") from None
    if (other := _answering(options)) is not None:
        raise _no_listening(options, f"another program answers on {other}")
    bound: list[socket.socket] = []
    port, missing = options.port, ""
    for family, kind, protocol, _, address in found:
        try:
            bound.append(_listening(family, kind, protocol, (address[0], port, *address[2:])))
        except OSError as error:
            missing = str(error.strerror)
            if family == socket.AF_INET6 and error.errno in _NO_FAMILY:
                continue  # a machine without IPv6 still has the other address
            for one in bound:
                one.close()
            raise _no_listening(options, missing) from None
        port = port or bound[-1].getsockname()[1]
    if not bound:
        raise _no_listening(options, missing)
    return bound


def _listening(family: int, kind: int, protocol: int, address: tuple[Any, ...]) -> socket.socket:
    one = socket.socket(family, kind, protocol)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
        one.listen(BACKLOG)
    except OSError:
        one.close()
        raise
    return one


def _answering(options: ServerOptions) -> str | None:
    """Where this machine's own clients would reach another program on that port; None if nowhere.

    macOS lets an address be bound beside another program's wildcard, and `localhost` has two addresses.
    """
    if not options.port or not (is_loopback(options.host) or options.host in _EVERYWHERE):
        return None
    for address in ("127.0.0.1", "::1"):
        with suppress(OSError), socket.create_connection((address, options.port), timeout=0.5) as one:
            if one.getsockname() != one.getpeername():  # a free port may be given to the one who asks
                return address
    return None


def _no_listening(options: ServerOptions, why: str) -> MachineError:
    return MachineError(
        f"can't listen on {options.host} port {options.port}: {why}",
        next=f"stop what uses the port, or choose another: --port {options.port + 1}",
    )


def serve(
    app: App,
    options: ServerOptions,
    sockets: list[socket.socket],
    worker: EngineThread,
    before_exit: Callable[[], None] = lambda: None,
) -> int:
    """Serve until a signal; its exit code. The worker is closed. Raises what made the engine unusable.

    `before_exit` is called where a second signal ends the process on the spot.
    """
    return asyncio.run(_serve(app, options, sockets, worker, before_exit))


async def _serve(
    app: App,
    options: ServerOptions,
    sockets: list[socket.socket],
    worker: EngineThread,
    before_exit: Callable[[], None],
) -> int:
    server = make_server(app, options)
    ended = asyncio.Event()
    codes: list[int] = []

    def stop(number: signal.Signals) -> None:
        if codes:
            before_exit()
            os._exit(_CODES[number])  # asked a second time: now
        codes.append(_CODES[number])
        ended.set()

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(without_exhausted)
    for number in _CODES:
        loop.add_signal_handler(number, stop, number)
    serving = asyncio.create_task(server.serve(sockets))
    others = [asyncio.create_task(ended.wait()), asyncio.create_task(_broken(worker))]
    await asyncio.wait({serving, *others}, return_when=asyncio.FIRST_COMPLETED)
    failure = worker.error if worker.state == "unhealthy" else None
    await loop.run_in_executor(None, worker.close, options.limits.grace)
    server.should_exit = True
    for task in others:
        task.cancel()
    await serving
    if failure is not None:
        raise failure
    return codes[0] if codes else 0


async def _broken(worker: EngineThread) -> None:
    """Returns when the engine can't be used any more: a server without one is better restarted."""
    while worker.state != "unhealthy":
        await asyncio.sleep(0.2)


def make_server(app: ASGIApp, options: ServerOptions) -> uvicorn.Server:
    """uvicorn, told to keep out of signals, logs, headers, and of refusing: the gate does it in JSON."""

    crowd = Crowd(options.limits.connections)

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        state["crowded"] = crowd.refuses(state.pop("connection"))
        await app(scope, receive, send)

    config = uvicorn.Config(
        counted,
        http=_timed(options.limits.headers_time, crowd),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # it warns of every connection that speaks something else
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=IDLE_TIME,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=options.limits.headers,
    )
    return _Server(config, crowd)


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, crowd: Crowd) -> None:
        super().__init__(config)
        self._crowd = crowd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([Door(one, self._crowd) for one in sockets or []])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by `_serve`."""
        yield


def _timed(seconds: float, crowd: Crowd) -> type[H11Protocol]:
    """uvicorn's protocol; a connection whose first request has not been read after `seconds` is closed.

    It keeps `crowd`, and is the "connection" in the state of its requests.
    """

    class Timed(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.app_state = {**self.app_state, "connection": self}
            crowd.came(self)
            self._silent = self.loop.call_later(seconds, self._close_if_silent)

        def connection_lost(self, exc: Exception | None) -> None:
            self._silent.cancel()  # it would keep what the connection held
            crowd.left(self)
            super().connection_lost(exc)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Timed


def addresses(sockets: list[socket.socket], host: str) -> list[str]:
    """http://... of what is listened on."""
    shown: dict[str, None] = {}
    for one in sockets:
        name, port = one.getsockname()[:2]
        name = host if host == "localhost" else f"[{name}]" if ":" in name else name
        shown[f"http://{name}:{port}"] = None
    return list(shown)
