"""Completion of commands, of files after /read, and of stored conversations after /load."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from dsv4_mlx.terminal.commands import COMMANDS
from dsv4_mlx.terminal.store import Entry


class LineCompleter(Completer):
    """Completes a line that starts with /; anything else is left alone."""

    def __init__(self, stored: Callable[[], list[Entry]]) -> None:
        self._stored = stored
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        word, space, argument = text.partition(" ")
        if not space:
            for command in COMMANDS.values():
                if f"/{command.name}".startswith(word.lower()):
                    end = " " if command.argument else ""
                    yield Completion(
                        f"/{command.name}{end}", start_position=-len(word), display=f"/{command.name}",
                        display_meta=command.help,
                    )  # fmt: skip
        elif word == "/read":
            inner = Document(argument, len(argument))
            yield from self._paths.get_completions(inner, complete_event)
        elif word == "/load":
            for entry in self._stored():
                if entry.name.lower().startswith(argument.lower()):
                    yield Completion(entry.name, start_position=-len(argument))
