"""Which view suits the terminal; the chat put together and run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from dsv4_mlx.machine.awake import Awake
from dsv4_mlx.terminal.chat import Chat, ChatOptions
from dsv4_mlx.terminal.chat_engine import ChatEngine
from dsv4_mlx.terminal.commands import SlashCommands
from dsv4_mlx.terminal.store import ConversationStore


def charset(environment: Mapping[str, str]) -> str | None:
    """The terminal's character set where the locale names one other than UTF-8; None for UTF-8.

    No locale at all says nothing about the terminal: UTF-8 is what today's terminals speak.
    """
    value = next((v for k in ("LC_ALL", "LC_CTYPE", "LANG") if (v := environment.get(k, ""))), "")
    name = value.partition("@")[0]
    if not name or "utf-8" in name.lower() or "utf8" in name.lower():
        return None
    return name.partition(".")[2] or "ascii"


def talk(
    engine: ChatEngine,
    folder: Path,
    options: ChatOptions,
    environment: Mapping[str, str],
    *,
    question: str | None = None,
    plain: bool = False,
    awake: Awake | None = None,
) -> int:
    """Run the chat and return the exit code. `folder` is where its files are. Raises Dsv4Error.

    `question`: ask it and end, without a conversation after it.
    """
    foreign = charset(environment)
    drawn = question is None and not plain and foreign is None and environment.get("TERM", "") != "dumb"
    if drawn and sys.stdin.isatty() and sys.stdout.isatty():
        return _drawn(engine, folder, options, environment, awake)
    return _plain(engine, folder, options, question, foreign, awake)


def _drawn(
    engine: ChatEngine,
    folder: Path,
    options: ChatOptions,
    environment: Mapping[str, str],
    awake: Awake | None,
) -> int:
    from prompt_toolkit.data_structures import Size
    from prompt_toolkit.input import create_input

    from dsv4_mlx.terminal.history import LineHistory
    from dsv4_mlx.terminal.paint import HeldOutput
    from dsv4_mlx.terminal.screen import Screen

    def size() -> Size:
        columns, rows = os.get_terminal_size(sys.stdout.fileno())
        return Size(rows=rows or 24, columns=columns or 80)  # some terminals say 0

    color = not environment.get("NO_COLOR")
    output = HeldOutput(sys.stdout, size, environment.get("TERM", ""), color)
    view = Screen(create_input(sys.stdin), output, LineHistory(folder / "history"), color)
    chat = Chat(engine, ConversationStore(folder / "chats"), view, options, SlashCommands(), awake)
    return _ended(chat, lambda: view.run(chat))


def _plain(
    engine: ChatEngine,
    folder: Path,
    options: ChatOptions,
    question: str | None,
    foreign: str | None,
    awake: Awake | None,
) -> int:
    from dsv4_mlx.terminal.history import LineHistory
    from dsv4_mlx.terminal.plain import Plain

    if foreign is not None:
        for stream in (sys.stdout, sys.stderr):
            _degrade(stream, foreign)
    sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
    history = LineHistory(folder / "history") if question is None else None
    view = Plain(sys.stdout, sys.stderr, history)
    chat = Chat(engine, ConversationStore(folder / "chats"), view, options, SlashCommands(), awake)
    if foreign is not None and sys.stdout.isatty():
        view.note(
            f"this terminal's locale is {foreign}, not UTF-8: plain text, and ? for what it can't show\n"
            "  next: set LC_ALL=en_US.UTF-8 if the terminal shows UTF-8"
        )
    return _ended(chat, lambda: view.run(chat) if question is None else view.run_once(chat, question))


def _ended(chat: Chat, run: Callable[[], int]) -> int:
    try:
        code = run()
    finally:
        chat.close()
    if chat.failure is not None:
        raise chat.failure
    return code


def _degrade(stream: object, encoding: str) -> None:
    """Write in the terminal's own character set, ? for what it lacks; ASCII if Python has no such set."""
    for name in (encoding, "ascii"):
        try:
            stream.reconfigure(encoding=name, errors="replace")  # type: ignore[attr-defined]
        except (LookupError, AttributeError):
            continue
        return
