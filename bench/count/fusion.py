"""How many kernels `mx.compile` saves.

A trace flattens compiled functions into their primitives. While it runs, `recorded` notes which functions
were called with what; afterwards `saved` builds each of them with and without compilation and compares.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import mlx.core as mx

from bench.count.rules import VIEWS

_BOX = re.compile(r'\[label ="(\w+)", shape=rectangle\]')


@dataclass
class Calls:
    """Compiled functions and the arguments they were called with; arrays by shape and dtype."""

    entries: list[tuple[Callable[..., Any], tuple[Any, ...]]] = field(default_factory=list)

    def saved(self) -> int:
        """Dispatches that fusion saves over all calls."""
        return sum(_saved(function, arguments) for function, arguments in self.entries)


_CALLS = Calls()


@dataclass(frozen=True)
class _Blank:
    shape: tuple[int, ...]
    dtype: mx.Dtype


@contextmanager
def recorded() -> Iterator[Calls]:
    """Calls of functions that were decorated by `mx.compile` within, now or earlier, are noted.

    A module is imported, and its functions decorated, once: what notes calls outlives the first `with`.
    """
    _CALLS.entries.clear()

    def compile_(function: Callable[..., Any], *_: Any, **__: Any) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            if keywords:
                raise TypeError(f"{function.__name__}: keyword arguments of a compiled function")
            _CALLS.entries.append((function, tuple(_shape(a) for a in arguments)))
            return function(*arguments)

        return call

    with mock.patch.object(mx, "compile", compile_):
        yield _CALLS


def _shape(argument: Any) -> Any:
    return _Blank(argument.shape, argument.dtype) if isinstance(argument, mx.array) else argument


@functools.cache
def _saved(function: Callable[..., Any], arguments: tuple[Any, ...]) -> int:
    given = [mx.zeros(a.shape, a.dtype) if isinstance(a, _Blank) else a for a in arguments]
    return _kernels(function(*given)) - _kernels(mx.compile(function)(*given))


def _kernels(outputs: Any) -> int:
    text = io.StringIO()
    mx.export_to_dot(text, *(outputs if isinstance(outputs, tuple | list) else (outputs,)))
    return sum(name not in VIEWS for name in _BOX.findall(text.getvalue()))
