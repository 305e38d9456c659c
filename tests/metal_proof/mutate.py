"""Ways to break a kernel, one place at a time: the emulator must notice every one of them.

Each function yields mutants of a text (a body or a header). A mutant that could not be noticed, because the
kernel is still right, would show that a barrier or a qualifier was not needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from metal_proof.rewrite import blank

_BARRIER = re.compile(r"\b(?:threadgroup|simdgroup)_barrier\s*\([^;]*?\)\s*;")
_FLAGS = re.compile(r"mem_flags::mem_(\w+)")
_QUALIFIER = re.compile(r"\b(?:device|constant|threadgroup|thread)\b ?")


@dataclass(frozen=True)
class Mutant:
    text: str
    line: int
    change: str


def _replace(text: str, start: int, end: int, new: str) -> Mutant:
    line = text.count("\n", 0, start) + 1
    old = text[start:end].strip()
    change = f"line {line}: `{old}` -> `{new}`" if new else f"line {line}: without `{old}`"
    return Mutant(text[:start] + new + text[end:], line, change)


def without_each_barrier(text: str) -> Iterator[Mutant]:
    for match in _BARRIER.finditer(blank(text)):
        yield _replace(text, match.start(), match.end(), "")


def with_wrong_flags(text: str) -> Iterator[Mutant]:
    """Every barrier with the fence of the other memory, and with none."""
    other = {"threadgroup": "device", "device": "threadgroup"}
    for match in _FLAGS.finditer(blank(text)):
        for flag in (other.get(match.group(1)), "none"):
            if flag is not None and flag != match.group(1):
                yield _replace(text, match.start(1), match.end(1), flag)


def without_each_qualifier(text: str) -> Iterator[Mutant]:
    """Every address-space qualifier deleted in turn."""
    for match in _QUALIFIER.finditer(blank(text)):
        yield _replace(text, match.start(), match.end(), "")


def with_each(text: str, pattern: str, replacement: str) -> Iterator[Mutant]:
    """Every match of a pattern replaced in turn, for mistakes that only the author can name."""
    for match in re.finditer(pattern, blank(text)):
        yield _replace(text, match.start(), match.end(), match.expand(replacement))
