"""Who runs next. Pure: active jobs share the engine's time equally, waiting ones come in fairly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from dsv4_mlx.errors import UsageError

K = TypeVar("K", bound=Hashable)

OVERTAKEN = 8  # so often a waiting job lets others by; then nobody comes in before it


@dataclass(frozen=True)
class SchedulerOptions:
    """`active`: jobs that run at once; `waiting`: jobs that may wait for that, for `patience` seconds at
    most; `sessions`: large ones that are kept with their state. Raises UsageError."""

    active: int = 4
    waiting: int = 16
    patience: float = 600.0
    sessions: int = 8

    def __post_init__(self) -> None:
        least = {"max-active": self.active, "max-queue": self.waiting, "sessions": self.sessions}
        for name, value in least.items():
            if value < 1:
                raise UsageError(f"{name} is {value}, expected at least 1")


class FairShare(Generic[K]):
    """Equal shares of engine time, whatever a step costs: a prefill chunk counts like as many tokens.

    A newcomer starts level with the one that had least, so it runs at once but takes nothing back.
    """

    def __init__(self) -> None:
        self._spent: dict[K, float] = {}

    def add(self, key: K) -> None:
        self._spent[key] = min(self._spent.values(), default=0.0)

    def remove(self, key: K) -> None:
        del self._spent[key]

    def charge(self, key: K, seconds: float) -> None:
        self._spent[key] += seconds

    def next(self, ready: Collection[K]) -> K:
        """Of `ready`, the one with the least time; of equals, the one that came first."""
        return min((key for key in self._spent if key in ready), key=self._spent.__getitem__)


@dataclass
class _Place(Generic[K]):
    key: K
    hint: str
    overtaken: int = 0


class Waiting(Generic[K]):
    """Jobs that wait to become active, in the order they came."""

    def __init__(self) -> None:
        self._places: list[_Place[K]] = []

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[K]:
        return iter([place.key for place in self._places])

    def add(self, key: K, hint: str) -> None:
        self._places.append(_Place(key, hint))

    def remove(self, key: K) -> None:
        self._places = [place for place in self._places if place.key != key]

    def admit(self, active: Collection[str], fits: Callable[[K], bool]) -> K | None:
        """Take out and return the job that comes in now; None if none can. `active`: hints of those active.

        Clients with the fewest active jobs go first, then who came first. A job that does not fit is
        passed over, so a small one goes by a large one that waits for memory; but nobody for ever.
        """
        running = Counter(active)
        tired = [place for place in self._places if place.overtaken >= OVERTAKEN]
        order = tired[:1] or sorted(self._places, key=lambda place: running[place.hint])
        for place in order:
            if fits(place.key):
                at = self._places.index(place)
                for earlier in self._places[:at]:
                    earlier.overtaken += 1
                del self._places[at]
                return place.key
        return None
