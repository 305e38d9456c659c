"""Highlighters by language. The first use of one compiles its patterns, 100 ms and more: in a thread, so
that keys still echo meanwhile."""

from __future__ import annotations

import threading

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

COMMON = ("python", "bash", "json")  # made ready while the model loads
PLAIN = "text"


class _Lexers:
    def __init__(self) -> None:
        self._threads: dict[str, threading.Thread] = {}

    def begin(self, language: str) -> threading.Thread:
        thread = self._threads.get(language)
        if thread is None:
            thread = threading.Thread(target=_compile, args=(language,), daemon=True)
            self._threads[language] = thread
            thread.start()
        return thread


_LEXERS = _Lexers()


def begin_common() -> None:
    """Make the common ones ready."""
    for language in COMMON:
        _LEXERS.begin(language)


def usable(language: str, patient: bool) -> str:
    """`language` once it is ready, which `patient` waits for; until then the name of no highlighting."""
    thread = _LEXERS.begin(language)
    if patient:
        thread.join()
    return PLAIN if thread.is_alive() else language


def lexer(language: str) -> Lexer | None:
    """The highlighter if there is one and it is ready."""
    if usable(language, patient=False) != language:
        return None
    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


def _compile(language: str) -> None:
    try:
        list(get_lexer_by_name(language).get_tokens("x = 1\n"))
    except ClassNotFound:
        return
