"""What paging did: counted per layer, summed on request."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields


@dataclass
class LayerStats:
    """Counts since the model was opened. An expert that a run of a layer needs counts once in that run.

    `hits` were in a slot, `early` were being read already on advice, `misses` had to be read. `advised`
    counts reads on advice, `bytes` what all reads brought, `stall` the seconds nothing could be computed.
    """

    runs: int = 0
    hits: int = 0
    early: int = 0
    misses: int = 0
    advised: int = 0
    bytes: int = 0
    stall: float = 0.0

    def __add__(self, other: LayerStats) -> LayerStats:
        return LayerStats(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: LayerStats) -> LayerStats:
        return LayerStats(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})

    @property
    def needed(self) -> int:
        return self.hits + self.early + self.misses

    @property
    def hit_rate(self) -> float:
        """Share of needed experts that were in a slot; 1.0 where none was needed."""
        return self.hits / self.needed if self.needed else 1.0

    def copy(self) -> LayerStats:
        return LayerStats(**asdict(self))


def total(layers: list[LayerStats]) -> LayerStats:
    """The sum over layers. `runs` then counts runs of layers, not tokens."""
    return sum(layers, LayerStats())
