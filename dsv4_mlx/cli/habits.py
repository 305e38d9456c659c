"""What fingers type out of habit from other programs: each is done, or answered by a sentence."""

from __future__ import annotations

# A first word that is no command here -> what does it.
COMMANDS = {
    "run": "dsv4-mlx chat MODEL talks with a model; dsv4-mlx generate MODEL 'a question' answers one",
    "list": "dsv4-mlx models",
    "ls": "dsv4-mlx models",
    "pull": "dsv4-mlx convert NAME FOLDER fetches and converts a checkpoint, download NAME FOLDER fetches it",
    "ps": "a model is in memory as long as its chat or serve runs; curl 127.0.0.1:8080/health asks a server",
    "stop": "Ctrl-C in the terminal that runs it",
    "rm": "a model is a folder: dsv4-mlx models says where; delete it like any other",
    "show": "dsv4-mlx info MODEL",
    "ask": "dsv4-mlx generate MODEL 'a question'",
    "create": "dsv4-mlx convert SOURCE FOLDER",
    "quantize": "dsv4-mlx convert SOURCE FOLDER --recipe 4bit",
    "config": "there is no settings file: commands take options, and DSV4_MODEL names the usual model",
    "update": "install it again as you did, newer: docs/usage.md",
}
# An option that is not here -> what is.
OPTIONS = {
    "--image": "the model reads text; -f FILE gives it a text file",
    "--temp": "--temperature T",
    "--model": "MODEL is the first argument: dsv4-mlx COMMAND MODEL",
    "-m": "MODEL is the first argument: dsv4-mlx COMMAND MODEL",
    "-v": "--stats says how fast it was",
    "--verbose": "--stats says how fast it was",
    "-n": "--max-tokens N",
    "-c": "--context N",
    "-t": "--temperature T",
    "-s": "--system TEXT",
    "--system-prompt": "--system TEXT",
    "--no-think": "--think off",
    "--ctx-size": "--context N",
    "--max-kv-size": "--context N",
}


def meant(arguments: list[str]) -> list[str] | None:
    """A refused command line as this program spells it; None for what it has not."""
    first, rest = arguments[0], arguments[1:]
    if first in ("-v", "-V", "version"):
        return ["--version"]
    return [*rest, "--help"] if first == "help" else None


def instead(arguments: list[str], message: str) -> str | None:
    """What to type in place of a refused command line, where its first word or `message` tells it."""
    if "Missing argument 'MODEL'" in message:
        return (
            "dsv4-mlx models lists those on this disk, `demo` is always there; DSV4_MODEL names the usual one"
        )
    words = message.replace(":", " ").split()
    return COMMANDS.get(arguments[0]) or next((OPTIONS[word] for word in words if word in OPTIONS), None)
