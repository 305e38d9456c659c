"""dsv4-mlx connect"""

from __future__ import annotations

import difflib
import json
import os
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from dsv4_mlx.cli.clients import CLIENTS, Client, Server
from dsv4_mlx.cli.options import ApiKeyFileOption, ApiKeyOption, api_key_from, config_folder
from dsv4_mlx.errors import InputError, MachineError, UsageError

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
