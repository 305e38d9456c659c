"""dsv4-mlx connect

Settings of editors and agents for a running server: what to add to which file.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dsv4_mlx.cli.options import ApiKeyFileOption, ApiKeyOption, api_key_from
from dsv4_mlx.errors import InputError, MachineError, UsageError
from dsv4_mlx.machine.support import config_folder

OUTPUT = 32_000  # tokens that agents ask for in one answer; the server cuts it to what the context leaves
ID = "dsv4-mlx"


@dataclass(frozen=True)
class Server:
    """A running server, as its clients see it. `key` is sent by them even where none is asked for."""

    url: str
    model: str
    context: int
    key: str


@dataclass(frozen=True)
class Client:
    """`added(old, server)`: the file's new text, given the old one or None. `then`: what to do next."""

    file: Callable[[Path, Path], Path]  # home, configuration folder
    added: Callable[[str | None, Server], str]
    then: str


def _opencode(old: str | None, server: Server) -> str:
    model = {
        "name": f"{server.model} (local)",
        "reasoning": True,
        "tool_call": True,
        "interleaved": {"field": "reasoning_content"},
        "limit": {"context": server.context, "output": min(OUTPUT, server.context)},
    }
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": ID,
        "options": {"baseURL": f"{server.url}/v1", "apiKey": server.key},
        "models": {server.model: model},
    }
    head = {"$schema": "https://opencode.ai/config.json"}
    return _merged(old, {**head, "provider": {ID: provider}, "model": f"{ID}/{server.model}"})


def _zed(old: str | None, server: Server) -> str:
    model = {
        "name": server.model,
        "display_name": f"{server.model} (local)",
        "max_tokens": server.context,
        "max_output_tokens": min(OUTPUT, server.context),
        "capabilities": {
            "tools": True,
            "images": False,
            "parallel_tool_calls": True,
            "prompt_cache_key": True,
        },
    }
    provider = {ID: {"api_url": f"{server.url}/v1", "available_models": [model]}}
    return _merged(old, {"language_models": {"openai_compatible": provider}})


def _claude(old: str | None, server: Server) -> str:
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_HAIKU_MODEL", "ANTHROPIC_SMALL_FAST_MODEL")
    environment = {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.key,
        **dict.fromkeys(names, server.model),
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(server.context),
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "API_TIMEOUT_MS": "3000000",
    }
    return _merged(old, {"env": environment})


def _codex(old: str | None, server: Server) -> str:
    """A profile is a file of its own: the user's config.toml is not touched."""
    return (
        f"model = {json.dumps(server.model)}\n"
        f'model_provider = "{ID}"\n'
        f"model_context_window = {server.context}\n\n"
        f"[model_providers.{ID}]\n"
        f'name = "{ID}"\n'
        f"base_url = {json.dumps(server.url + '/v1')}\n"
        'wire_api = "responses"\n'
        f"experimental_bearer_token = {json.dumps(server.key)}\n"
    )


_BEGIN, _END = f"# {ID}: begin", f"# {ID}: end"


def _continue(old: str | None, server: Server) -> str:
    """YAML, edited as text so that comments stay: our models stand between two comments."""
    if old is None:
        head = "name: Local\nversion: 1.0.0\nschema: v1\nmodels:\n"
        return head + "\n".join(_continue_models(server, "  ")) + "\n"
    lines = old.splitlines()
    marks = [line.strip() for line in lines]
    if _BEGIN in marks and _END in marks[marks.index(_BEGIN) :]:
        start = marks.index(_BEGIN)
        end = marks.index(_END, start)
        indent = lines[start][: -len(lines[start].lstrip())] if lines[start] != lines[start].lstrip() else ""
        return "\n".join([*lines[:start], *_continue_models(server, indent), *lines[end + 1 :]]) + "\n"
    at = next((i for i, line in enumerate(lines) if line.split("#")[0].rstrip() == "models:"), None)
    if at is None and not any(line.startswith("models") for line in lines):
        return "\n".join([*lines, "models:", *_continue_models(server, "  ")]) + "\n"
    if at is None:
        raise InputError(
            "its `models` are not a plain list", next="add by hand what is printed without --write"
        )
    items = (line for line in lines[at + 1 :] if line.lstrip().startswith("- "))
    first = next(items, "  - ")
    indent = first[: len(first) - len(first.lstrip())]
    return "\n".join([*lines[: at + 1], *_continue_models(server, indent), *lines[at + 1 :]]) + "\n"


def _continue_models(server: Server, indent: str) -> list[str]:
    """The completion model has Continue's `deepseek` provider, which sends what stands before and behind the
    cursor; its `openai` provider spells markers, which are text here."""

    def entry(name: str, provider: str, base: str, roles: str, *more: str) -> list[str]:
        return [
            f"- name: {json.dumps(name)}",
            f"  provider: {provider}",
            f"  model: {json.dumps(server.model)}",
            f"  apiBase: {json.dumps(base)}",
            f"  apiKey: {json.dumps(server.key)}",
            f"  roles: [{roles}]",
            *more,
        ]

    talking = (
        "  capabilities: [tool_use]",
        "  defaultCompletionOptions:",
        f"    contextLength: {server.context}",
        f"    maxTokens: {min(OUTPUT, server.context)}",
    )
    lines = [
        _BEGIN,
        *entry(
            f"{server.model} (local)", "openai", f"{server.url}/v1", "chat, edit, apply, summarize", *talking
        ),
        *entry(f"{server.model} (local, completion)", "deepseek", f"{server.url}/", "autocomplete"),
        _END,
    ]
    return [indent + line for line in lines]


def _merged(old: str | None, ours: Mapping[str, Any]) -> str:
    """JSON with our values in it; what else was there stays, in its order. Raises InputError."""
    try:
        given = json.loads(old) if old and old.strip() else {}
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InputError(
            "it is not plain JSON (perhaps it has comments)",
            next="add by hand what is printed without --write",
        )
    return json.dumps(_into(given, ours), indent=2, ensure_ascii=False) + "\n"


def _into(given: dict[str, Any], ours: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(given)
    for name, value in ours.items():
        inside = merged.get(name)
        deeper = isinstance(value, Mapping) and isinstance(inside, dict)
        merged[name] = _into(inside, value) if deeper and isinstance(inside, dict) else value
    return merged


CLIENTS: dict[str, Client] = {
    "opencode": Client(
        lambda home, config: config / "opencode" / "opencode.json",
        _opencode,
        "start opencode: the model is chosen",
    ),
    "continue": Client(
        lambda home, config: home / ".continue" / "config.yaml",
        _continue,
        "reload the editor's window and choose the model in Continue",
    ),
    "zed": Client(
        lambda home, config: config / "zed" / "settings.json",
        _zed,
        "give a key in Zed's provider settings or as DSV4_MLX_API_KEY, then choose the model",
    ),
    "claude": Client(
        lambda home, config: home / ".claude" / f"{ID}.json",
        _claude,
        f"start it with: claude --settings ~/.claude/{ID}.json",
    ),
    "codex": Client(
        lambda home, config: home / ".codex" / f"{ID}.config.toml",
        _codex,
        f"start it with: codex --profile {ID}",
    ),
}


TIMEOUT = 5  # seconds for the server to answer


def connect(
    client: Annotated[str, typer.Argument(metavar="|".join(CLIENTS), help="The program to connect.")],
    write: Annotated[
        bool, typer.Option("--write", help="Change the program's file: shows a diff and keeps a backup.")
    ] = False,
    url: Annotated[
        str, typer.Option("--url", metavar="URL", help="Where the server is.")
    ] = "http://127.0.0.1:8080",
    api_key: ApiKeyOption = None,
    api_key_file: ApiKeyFileOption = None,
) -> None:
    """Print the settings with which an editor or agent uses the running server; --write puts them in place.

    Example: dsv4-mlx connect opencode --write
    """
    if client not in CLIENTS:
        raise UsageError(f"{client!r} is not known", next=f"give one of {', '.join(CLIENTS)}")
    server = ask_server(url.rstrip("/").removesuffix("/v1"), api_key_from(api_key, api_key_file))
    chosen = CLIENTS[client]
    path = chosen.file(Path.home(), config_folder())
    if write:
        put(path, chosen, server)
    else:
        print(f"to be added to {path}:\n", file=sys.stderr)
        print(chosen.added(None, server), end="")
    print(f"\nnext: {chosen.then}", file=sys.stderr)


def ask_server(url: str, key: str | None) -> Server:
    """What runs at `url`. Raises UsageError, MachineError."""
    import urllib.error
    import urllib.request

    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--url is {url!r}, expected http://HOST:PORT")
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        request = urllib.request.Request(f"{url}/v1/models", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            model = json.load(answer)["data"][0]
            return Server(url, str(model["id"]), int(model["context_length"]), key or "local")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 401:
            raise UsageError(
                "the server asks for its API key", next="set DSV4_API_KEY, or give --api-key-file"
            ) from None
        raise MachineError(
            f"the server at {url} answers {error.code}", next="try again when it is ready"
        ) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise MachineError(
            f"no server answers at {url}: {reason}", next="start one: dsv4-mlx serve MODEL"
        ) from None
    except (KeyError, IndexError, TypeError):
        raise MachineError(
            f"what answers at {url} is not this program's server", next="give its address with --url"
        ) from None


def put(path: Path, client: Client, server: Server) -> None:
    """Change `path`: the diff to stdout, the old file beside the new. Raises InputError, MachineError."""
    try:
        old = path.read_text(encoding="utf-8") if path.exists() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file can't be read: {error}", where=path) from None
    try:
        new = client.added(old, server)
    except InputError as error:
        raise InputError(f"the file can't be changed: {error.message}", where=path, next=error.next) from None
    if new == old:
        print(f"{path} has these settings already", file=sys.stderr)
        return
    lines = difflib.unified_diff(
        (old or "").splitlines(True), new.splitlines(True), str(path), f"{path} (new)"
    )
    sys.stdout.writelines(lines)
    try:
        if old is not None:
            backup = path.with_name(f"{path.name}.backup-{time.strftime('%Y%m%d-%H%M%S')}")
            _write(backup, old, path)
            print(f"\nthe old file is kept as {backup}", file=sys.stderr)
        _write(path, new, path)
    except OSError as error:
        raise MachineError(f"the file can't be written: {error.strerror}", where=path) from None


def _write(path: Path, text: str, model: Path) -> None:
    """Atomic; with the permissions of `model`, or else readable by its owner alone: it may hold a key."""
    target = path.resolve()  # a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    mode = model.stat().st_mode & 0o777 if model.exists() else 0o600
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
