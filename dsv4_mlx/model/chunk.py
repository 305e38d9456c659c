"""Everything about a chunk that follows from where it starts and how long it is.

Masks, rotation tables and which compressed rows close are the same for all layers of a kind, so they are
made once per chunk, on the host, and never inside a layer. Positions are Python ints.
"""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.model.rope import compressed_table, plain_table
from dsv4_mlx.model.state import SLACK


@dataclass(frozen=True)
class Rotation:
    """Tables complex64 [T, K / 2] of this chunk's positions; `inverse` undoes `forward`."""

    forward: mx.array
    inverse: mx.array


@dataclass(frozen=True)
class Emission:
    """What one compression ratio does in this chunk."""

    ratio: int
    first: int  # rows first .. end - 1 are emitted
    end: int  # rows 0 .. end - 1 exist after this chunk
    needed: int  # first position pooled, the previous window included where there is one
    opening: bool  # the first emitted row has no previous window (row 0)
    table: mx.array | None  # rotation of the emitted rows, complex64 [end - first, K / 2]
    mask: mx.array | None  # float32 [T, end]: -inf where a query doesn't see a row; None where all see all
    seen: mx.array | None  # int32 [T]: rows visible to each query; None with `mask`


@dataclass(frozen=True)
class ChunkPlan:
    """A chunk of `rows` tokens at positions start .. start + rows - 1."""

    start: int
    rows: int
    in_ring: bool  # the chunk is short enough to be written first and read back from the window ring
    filled: int  # ring rows that hold a position once the chunk is written
    history: int  # else: first position of the window rows that go before the chunk's own
    window: mx.array | None  # float32 [T, S], 0 or -inf, over the filled ring, or over history + chunk
    plain: Rotation
    compressed: Rotation
    groups: dict[int, Emission]


class ChunkPlanner:
    """Makes plans for one model."""

    def __init__(self, config: ModelConfig) -> None:
        self.window = config.window
        self.ratios = sorted({r for r in config.ratios if r})
        self._plain, self._compressed = plain_table(config), compressed_table(config)
        self._ring_masks: dict[int, mx.array] = {}  # by rows, of which there are SLACK + 1

    def plan(self, start: int, rows: int) -> ChunkPlan:
        in_ring = rows <= SLACK + 1
        history = max(0, start - self.window + 1)
        mask = self._ring_mask(start, rows) if in_ring else _band_mask(start, rows, history, self.window)
        return ChunkPlan(
            start=start,
            rows=rows,
            in_ring=in_ring,
            filled=min(start + rows, self.window + SLACK),
            history=history,
            window=mask,
            plain=Rotation(*self._plain.rows(start, rows)),
            compressed=Rotation(*self._compressed.rows(start, rows)),
            groups={ratio: self._groups(ratio, start, rows) for ratio in self.ratios},
        )

    def _ring_mask(self, start: int, rows: int) -> mx.array | None:
        """Visible slots [T, filled] once the chunk is written; None where one query sees them all.

        Once the ring is full they depend on the position modulo its size only, so all there are fit in one
        table [2 * ring, T, ring], and decoding makes no mask however long it goes on.
        """
        ring = self.window + SLACK
        if rows == 1 and start < self.window:
            return None
        if rows not in self._ring_masks:
            self._ring_masks[rows] = mx.stack(
                [_ring_mask(at, rows, self.window, ring) for at in range(2 * ring)]
            )
            mx.eval(self._ring_masks[rows])
        at = start if start < ring else ring + start % ring
        filled = min(start + rows, ring)
        return self._ring_masks[rows][at : at + 1, :, :filled].squeeze(
            0
        )  # a view, where [at] would be a copy

    def _groups(self, ratio: int, start: int, rows: int) -> Emission:
        first, end = start // ratio, (start + rows) // ratio
        overlap = ratio == 4
        opening = first == 0
        mask = seen = None
        if rows > 1:
            counts = (np.arange(start, start + rows) + 1) // ratio
            seen = mx.array(counts.astype(np.int32))
            mask = _mask(np.arange(end)[None, :] < counts[:, None])
        return Emission(
            ratio=ratio,
            first=first,
            end=end,
            needed=(first - (overlap and not opening)) * ratio,
            opening=opening,
            table=self._compressed.at(np.arange(first, end) * ratio) if end > first else None,
            mask=mask,
            seen=seen,
        )


def _ring_mask(start: int, rows: int, window: int, ring: int) -> mx.array:
    """Slot s holds the last position = s mod ring."""
    last = start + rows - 1
    positions = last - (last - np.arange(ring)) % ring
    return _seen(start, rows, positions, window)


def _band_mask(start: int, rows: int, history: int, window: int) -> mx.array:
    return _seen(start, rows, np.arange(history, start + rows), window)


def _seen(start: int, rows: int, positions: np.ndarray, window: int) -> mx.array:
    queries = np.arange(start, start + rows)[:, None]
    return _mask((positions >= 0) & (positions <= queries) & (positions > queries - window))


def _mask(seen: npt.NDArray[np.bool_]) -> mx.array:
    return mx.array(np.where(seen, np.float32(0), np.float32(-np.inf)))
