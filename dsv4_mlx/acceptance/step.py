"""One question of the acceptance and its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """`ok` is None where the question could not be asked. `found` names what is wrong, or why not asked.

    `figures` are plain numbers and texts for the report; none holds a prompt or an answer.
    """

    name: str
    ok: bool | None
    found: tuple[str, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
