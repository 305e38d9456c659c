"""One question of the acceptance and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

Progress = Callable[[int, int], None]  # done, in all
Bar = Callable[[str, str], AbstractContextManager[Progress]]  # title and unit of what is counted


@dataclass(frozen=True)
class Step:
    """`ok` is None where the question could not be asked. `found` names what is wrong, or why not asked.

    `told`: what was seen, for people, whatever the verdict. `figures` are plain numbers and texts for the
    report; nothing here holds a prompt, an answer or a path.
    """

    name: str
    ok: bool | None
    found: tuple[str, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    told: tuple[str, ...] = ()
    seconds: float = 0.0
