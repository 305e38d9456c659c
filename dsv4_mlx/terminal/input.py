"""What the keys do. Moving and editing are prompt_toolkit's own (Emacs style)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.filters import Condition, has_completions
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys

if TYPE_CHECKING:
    from dsv4_mlx.terminal.screen import Screen

PAGE = 5  # lines that PageUp and PageDown move the open thinking by


def bindings(screen: Screen) -> KeyBindings:
    """The chat's own keys."""
    keys = KeyBindings()
    _editing(keys, screen)
    _steering(keys, screen)
    return keys


def _editing(keys: KeyBindings, screen: Screen) -> None:
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


def _steering(keys: KeyBindings, screen: Screen) -> None:
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
            screen.chat.quit()

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
