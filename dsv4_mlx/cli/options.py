"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dsv4_mlx.errors import UsageError
from dsv4_mlx.server.options import ServerOptions

Think = Literal["off", "on", "max"]

LONGEST_KEY = 4096  # characters


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        envvar="DSV4_MODEL",
        help="A converted or official folder, a Hub id already downloaded, or `demo`. Default: $DSV4_MODEL.",
    ),
]
THINK: Think = ServerOptions.think
ThinkOption = Annotated[Think, typer.Option("--think", help="Think before answering, or think a lot.")]
ThinkBudgetOption = Annotated[
    int | None,
    typer.Option("--think-budget", metavar="N", min=0, help="End thinking after N tokens, and answer."),
]
SystemOption = Annotated[str, typer.Option("--system", metavar="TEXT", help="The system text.")]
ApiKeyOption = Annotated[
    str | None,
    typer.Option(
        "--api-key",
        metavar="KEY",
        envvar="DSV4_API_KEY",
        show_envvar=True,
        help="The server's key. Every user of the machine sees it in the list of processes: rather set the "
        "variable, or give a file.",
    ),
]
ApiKeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file", metavar="FILE", help="A file that holds the key; counts before --api-key."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print facts as JSON.")]


def api_key_from(given: str | None, file: Path | None) -> str | None:
    """The key that was given, or stands in `file`; None where neither is. Raises UsageError."""
    if file is None and not given:
        return None
    key, where = given or "", "the API key"
    if file is not None:
        where = f"the API key in {file}"
        try:
            with file.open("rb") as content:
                key = content.read(LONGEST_KEY + 3).decode("latin-1").rstrip("\r\n")
        except OSError as error:
            raise UsageError(f"can't read --api-key-file {file}: {error.strerror}") from None
    if not 0 < len(key) <= LONGEST_KEY or not all("!" <= character <= "~" for character in key):
        raise UsageError(
            f"{where} can't be sent: expected one line of 1 to {LONGEST_KEY} ASCII characters, no spaces",
            next="make one: openssl rand -hex 24",
        )
    return key
