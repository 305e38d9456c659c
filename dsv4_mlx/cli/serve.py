"""dsv4-mlx serve"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dsv4_mlx.cli.download import model_folder
from dsv4_mlx.cli.option_groups import ENGINE, ContextOption, EngineArguments, grouped
from dsv4_mlx.cli.options import (
    THINK,
    ApiKeyFileOption,
    ApiKeyOption,
    ModelArgument,
    ThinkOption,
    api_key_from,
)
from dsv4_mlx.scheduler.admission import SchedulerOptions
from dsv4_mlx.server.options import ServerOptions

if TYPE_CHECKING:
    import logging

    from dsv4_mlx.scheduler.engine_thread import EngineThread


HostOption = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen.")]
PortOption = Annotated[int, typer.Option("--port", metavar="N", min=0, max=65535, help="0: any free one.")]
SamplingOption = Annotated[
    Literal["client", "deepseek"],
    typer.Option(
        "--sampling", help="client: its values count; deepseek: not while thinking (temperature 1, top-p 1)."
    ),
]
OpenOption = Annotated[
    bool, typer.Option("--allow-unauthenticated", help="Listen for other machines without a key.")
]
AllowedHostOption = Annotated[
    list[str] | None,
    typer.Option("--allowed-host", metavar="NAME", help="Accept this name of the server too. Repeatable."),
]
CorsOption = Annotated[
    list[str] | None,
    typer.Option("--cors", metavar="ORIGIN", help="Let pages of this origin use the server. Repeatable."),
]
ActiveOption = Annotated[
    int, typer.Option("--max-active", metavar="N", help="Answers that are made at once, by turns.")
]
QueueOption = Annotated[
    int, typer.Option("--max-queue", metavar="N", help="Requests that may wait; more are told to come again.")
]
StrictOption = Annotated[
    bool, typer.Option("--strict-model", help="Refuse model names other than the listed one.")
]
RawOption = Annotated[
    bool,
    typer.Option("--raw-special-tokens", help="Markers spelt in a text completion's prompt count."),
]
ReplayOption = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="Answer with the turns of a file; no weights are loaded."),
]


@grouped
def serve(
    model: ModelArgument = "",
    *,
    host: HostOption = ServerOptions.host,
    port: PortOption = ServerOptions.port,
    context: ContextOption = None,
    think: ThinkOption = THINK,
    sampling: SamplingOption = ServerOptions.sampling,
    api_key: ApiKeyOption = None,
    api_key_file: ApiKeyFileOption = None,
    allow_unauthenticated: OpenOption = ServerOptions.allow_unauthenticated,
    allowed_host: AllowedHostOption = None,
    cors: CorsOption = None,
    max_active: ActiveOption = SchedulerOptions.active,
    max_queue: QueueOption = SchedulerOptions.waiting,
    strict_model: StrictOption = ServerOptions.strict_model,
    raw_special_tokens: RawOption = ServerOptions.raw_special_tokens,
    replay: ReplayOption = None,
    engine: Annotated[EngineArguments, ENGINE.but("context")],
) -> None:
    """Serve a model to editors and agents: OpenAI's, Anthropic's and Ollama's protocols on this machine.

    Example: dsv4-mlx serve ~/models/flash
    """

    options = ServerOptions(
        host=host,
        port=port,
        api_key=api_key_from(api_key, api_key_file),
        allow_unauthenticated=allow_unauthenticated,
        allowed_hosts=tuple(allowed_host or ()),
        allowed_origins=tuple(cors or ()),
        sampling=sampling,
        think=think,
        strict_model=strict_model,
        raw_special_tokens=raw_special_tokens,
    )
    limits = SchedulerOptions(active=max_active, waiting=max_queue)
    code = _serve(model, engine, context, options, limits, replay)
    if code:
        raise typer.Exit(code)


def _serve(
    model: str,
    engine: EngineArguments,
    context: int | None,
    options: ServerOptions,
    limits: SchedulerOptions,
    replay: Path | None,
) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from dsv4_mlx.cli.console import write_crash_log
    from dsv4_mlx.hub.models import MODEL_ID as DEMO
    from dsv4_mlx.machine import wire_guard
    from dsv4_mlx.machine.awake import Awake, Linger
    from dsv4_mlx.machine.limits import connections
    from dsv4_mlx.scheduler.backend import Backend, ModelBackend
    from dsv4_mlx.scheduler.engine_thread import EngineThread
    from dsv4_mlx.scheduler.replay import ReplayBackend, read_script
    from dsv4_mlx.server.app import make_app, model_facts
    from dsv4_mlx.server.crowd import SPARE
    from dsv4_mlx.server.lifecycle import addresses, listen
    from dsv4_mlx.server.lifecycle import serve as run_server
    from dsv4_mlx.server.options import MODEL_ID

    turns = None if replay is None else read_script(replay)
    reference = model or ("demo" if replay is not None else "")
    folder = model_folder(reference)
    name = DEMO if reference == "demo" else MODEL_ID
    most = options.limits.connections
    allowed = connections(most, len(list(folder.glob("*.safetensors"))), SPARE)
    options = dataclasses.replace(options, limits=dataclasses.replace(options.limits, connections=allowed))
    memory = engine.options().expert_memory if turns is None else None
    facts = model_facts(folder, name, options, context, memory)
    sockets = listen(options)  # before anything is loaded: a busy port is said at once
    backend: Backend
    if turns is None:
        opened = engine.with_kernels(plain=True, context=facts.context)
        backend = ModelBackend(folder, opened)
    else:
        backend = ReplayBackend(folder, turns, facts.context)
    log = _log()
    worker = EngineThread(backend, limits, Linger(Awake())).start()
    with ThreadPoolExecutor(2, "request") as threads:
        app = make_app(folder, facts, worker, threads, write_crash_log)
        for address in addresses(sockets, options.host):
            log.info("%s at %s, context %d tokens", name, address, facts.context)
        if allowed < most:
            log.warning("%d connections at once, not %d: raise ulimit -n for more", allowed, most)
        if options.api_key is None and options.allow_unauthenticated:
            log.warning("no API key: everybody who reaches %s can use the model", options.host)
        threading.Thread(target=_say_ready, args=(worker, log), daemon=True).start()
        return run_server(app, options, sockets, worker, wire_guard.clear)  # a hard end is one of ours, too


def _log() -> logging.Logger:
    import logging

    log = logging.getLogger("dsv4_mlx.server")
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    log.propagate = False
    return log


def _say_ready(worker: EngineThread, log: logging.Logger) -> None:
    """One line when the model is loaded."""
    began = time.monotonic()
    while worker.state == "loading":
        time.sleep(0.05)
    if worker.state == "ready":
        log.info(
            "ready after %.1f s; connect a program with: dsv4-mlx connect NAME", time.monotonic() - began
        )
