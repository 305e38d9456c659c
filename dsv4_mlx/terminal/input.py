"""What the keys do. Moving and editing are prompt_toolkit's own (Emacs style).

Completion of commands, of files after /read, and of stored conversations after /load.

Big pastes: the input shows a short mark, the question gets the text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition, has_completions
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

from dsv4_mlx.terminal.commands import COMMANDS
from dsv4_mlx.terminal.store import ListedConversation


class Editing(Protocol):
    """What keys do to the screen."""

    @property
    def opened(self) -> bool:
        """Whether the last thinking is shown."""

    def send(self) -> None: ...
    def stop(self) -> None: ...
    def quit(self) -> None: ...
    def toggle(self) -> None: ...
    def scroll(self, lines: int) -> None: ...
    def paste(self, text: str) -> None: ...
    def repaint(self) -> None: ...


class LineCompleter(Completer):
    """Completes a line that starts with /; anything else is left alone."""

    def __init__(self, stored: Callable[[], list[ListedConversation]]) -> None:
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


LINES, CHARACTERS = 20, 2000  # a paste beyond either is shown as a mark


class Pastes:
    """Marks and what they stand for."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}

    def shown(self, text: str) -> str:
        """What to put into the input for a pasted text: itself if it is small."""
        lines = text.count("\n") + 1
        if lines <= LINES and len(text) <= CHARACTERS:
            return text
        size = f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        mark = f"[paste {len(self._texts) + 1}: {size}]"
        self._texts[mark] = text
        return mark

    def expanded(self, text: str) -> str:
        """A line of input with its marks replaced. A mark inside pasted text stays."""
        parts = [text]
        for mark, pasted in self._texts.items():
            parts = [
                piece
                for i, part in enumerate(parts)
                for piece in (_split(part, mark, pasted) if i % 2 == 0 else [part])
            ]
        return "".join(parts)


def _split(text: str, mark: str, pasted: str) -> list[str]:
    """The text's own pieces at even places, pasted ones at odd places."""
    return [part for piece in text.split(mark) for part in (pasted, piece)][1:]


PAGE = 5  # lines that PageUp and PageDown move the open thinking by


def bindings(screen: Editing) -> KeyBindings:
    """The chat's own keys."""
    keys = KeyBindings()
    _editing(keys, screen)
    _steering(keys, screen)
    return keys


def _editing(keys: KeyBindings, screen: Editing) -> None:
    @keys.add("enter", eager=True)
    def _enter(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\") and not buffer.document.text_after_cursor:
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            screen.send()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _newline(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("tab")
    def _tab(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state:
            buffer.complete_next()
            return
        asked = CompleteEvent(completion_requested=True)
        found = list(buffer.completer.get_completions(buffer.document, asked))
        if len(found) == 1:
            buffer.apply_completion(found[0])
        else:
            buffer.start_completion(insert_common_part=True)

    @keys.add("s-tab", filter=has_completions)
    def _back_tab(event: KeyPressEvent) -> None:
        event.current_buffer.complete_previous()

    @keys.add("c-x", "c-e")
    def _editor(event: KeyPressEvent) -> None:
        event.current_buffer.open_in_editor()

    @keys.add(Keys.BracketedPaste)
    def _paste(event: KeyPressEvent) -> None:
        screen.paste(event.data)


def _steering(keys: KeyBindings, screen: Editing) -> None:
    opened = Condition(lambda: screen.opened)

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _stop(event: KeyPressEvent) -> None:
        screen.stop()

    @keys.add("c-d")
    def _end(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.delete()
        else:
            screen.quit()

    @keys.add("c-t")
    def _thinking(event: KeyPressEvent) -> None:
        screen.toggle()

    @keys.add("pageup", filter=opened)
    def _up(event: KeyPressEvent) -> None:
        screen.scroll(PAGE)

    @keys.add("pagedown", filter=opened)
    def _down(event: KeyPressEvent) -> None:
        screen.scroll(-PAGE)

    @keys.add("c-l")
    def _again(event: KeyPressEvent) -> None:
        screen.repaint()

    @keys.add("c-z")
    def _suspend(event: KeyPressEvent) -> None:
        event.app.suspend_to_background()
