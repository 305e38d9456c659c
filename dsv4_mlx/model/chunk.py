"""Everything about a chunk that follows from where it starts and how long it is.

Masks, rotation tables and which compressed rows close are the same for all layers of a kind, so they are
made once per chunk, on the host, and never inside a layer. Positions are Python ints, rotary angles tables of
complex numbers.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.config import LayerKind, ModelConfig, Yarn
from dsv4_mlx.model.state import SLACK, group_places, window_places
from dsv4_mlx.ops.types import Number

_BLOCK = 512  # positions per cached block
_KEPT = 4  # blocks kept: sequences that run side by side are at different positions


def frequencies(width: int, base: float, yarn: Yarn | None) -> npt.NDArray[np.float32]:
    """Angle per position of each channel pair, [width / 2] (docs/model.md 3.3)."""
    pairs = np.arange(0, width, 2, dtype=np.float32)
    plain: npt.NDArray[np.float32] = (
        np.float32(1.0) / np.power(np.float32(base), pairs / np.float32(width))
    ).astype(np.float32)
    if yarn is None:
        return plain

    def correction(rotations: float) -> float:
        return width * math.log(yarn.original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(correction(yarn.beta_fast)), 0)
    high = min(math.ceil(correction(yarn.beta_slow)), width - 1)
    span = max(high - low, 0.001)
    ramp = np.clip((np.arange(width // 2, dtype=np.float32) - low) / span, 0, 1)
    scaled: npt.NDArray[np.float32] = plain * (1 - ramp) + plain / np.float32(yarn.factor) * ramp
    return scaled.astype(np.float32)


class RopeTable:
    """`exp(i * position * f)` for the positions asked for, complex64 [T, K / 2]: 1 for unrotated channels.

    Blocks of positions are kept on the host: nothing that lives longer than a step takes MLX's memory.
    """

    def __init__(self, freqs: npt.NDArray[np.float32], width: int) -> None:  # [pairs rotated]
        self.freqs, self.width = freqs, width
        self._blocks: OrderedDict[int, npt.NDArray[np.complex64]] = OrderedDict()

    def rows(self, start: int, count: int) -> tuple[mx.array, mx.array]:
        """Positions start, start + 1, ...: forward and inverse [T, K / 2], from kept blocks if it can."""
        block, offset = divmod(start, _BLOCK)
        if offset + count > _BLOCK:
            table = self._factors(np.arange(start, start + count))
        else:
            if block not in self._blocks:
                self._blocks[block] = self._factors(np.arange(block * _BLOCK, (block + 1) * _BLOCK))
                if len(self._blocks) > _KEPT:
                    self._blocks.popitem(last=False)
            self._blocks.move_to_end(block)
            table = self._blocks[block][offset : offset + count]
        return mx.array(table), mx.array(table.conj())

    def at(self, positions: npt.NDArray[np.int64]) -> mx.array:
        """Any positions, forward: complex64 [T, K / 2]."""
        return mx.array(self._factors(positions))

    def _factors(self, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.complex64]:
        """complex64 [T, K / 2]. The angle is a float32 product, as in training; its cosine is exact."""
        angles = (positions.astype(np.float32)[:, None] * self.freqs).astype(np.float64)
        table = np.ones((len(positions), self.width // 2), np.complex64)
        table[:, -len(self.freqs) :] = np.cos(angles) + 1j * np.sin(angles)
        return table


def plain_table(config: ModelConfig) -> RopeTable:
    """Layers without compression: base 10000, no scaling."""
    return RopeTable(frequencies(config.rope_dim, config.rope_theta, None), config.head_dim)


def compressed_table(config: ModelConfig) -> RopeTable:
    """Layers with compression: base 160000 and YaRN, for everything the layer rotates."""
    freqs = frequencies(config.rope_dim, config.compress_rope_theta, config.yarn)
    return RopeTable(freqs, max(config.head_dim, config.index_dim))  # rows of both widths are rotated


@dataclass(frozen=True)
class Rotation:
    """Tables complex64 [T, K / 2] of this chunk's positions; `inverse` undoes `forward`."""

    forward: mx.array
    inverse: mx.array


@dataclass(frozen=True)
class Emission:
    """The compressed rows that layers of one kind emit in this chunk."""

    start: Number  # rows from `start` on are emitted, as many as `table` has
    stop: int  # rows 0 .. stop - 1 are read; they exist after this chunk, where no `count` says how many do
    count: mx.array | None
    phase: Number  # of the chunk's first token in its group
    place: Number  # of the chunk's first token: its position, or its index in the ring of the open group
    pool_from: int  # first position pooled, the previous group included where there is one
    offset: Number  # the index in the ring of what is at that position
    in_ring: bool  # all that is pooled is in the ring once the chunk is written
    is_first: bool  # the first emitted row has no previous group (row 0)
    table: mx.array | None  # rotation of the emitted rows, complex64 [stop - start, K / 2]
    mask: mx.array | None  # float32 [T, N], N = stop: -inf where a query doesn't see a row; None: all see all
    visible: mx.array | None  # int32 [T]: rows visible to each query; None with `mask`


@dataclass(frozen=True)
class ChunkPlan:
    """A chunk of `rows` tokens at positions start .. start + rows - 1.

    In a step that is traced for any position (model.step) `rows` is 1, what follows from the position are
    arrays, and `start` is 0.
    """

    start: int
    rows: int
    in_ring: bool  # the chunk is short enough to be written first and read back from the window ring
    place: Number  # of the chunk's first token: its position, or its index in the window ring
    filled: int  # ring rows that are read; they hold a position once the chunk is written
    count: mx.array | None  # how many of these do; None: all
    history: int  # else: first position of the window rows that go before the chunk's own
    window: mx.array | None  # float32 [T, S], 0 or -inf, over the filled ring, or over history + chunk
    plain: Rotation
    compressed: Rotation
    emissions: dict[LayerKind, Emission]  # of every kind that the model has and that compresses


class ChunkPlanner:
    """Makes plans for one model."""

    def __init__(self, config: ModelConfig) -> None:
        self.window = config.window
        self.kinds = sorted({kind for kind in config.kinds if kind.ratio}, key=lambda kind: kind.ratio)
        self._plain, self._compressed = plain_table(config), compressed_table(config)
        self.ring = window_places(config)
        self._ring_masks: dict[int, mx.array] = {}  # by rows, of which there are SLACK + 1

    def plan(self, start: int, rows: int) -> ChunkPlan:
        in_ring = rows <= SLACK + 1
        plain, compressed = self.rotations(start, rows)
        history = max(0, start - self.window + 1)
        mask = self._ring_mask(start, rows) if in_ring else _band_mask(start, rows, history, self.window)
        return ChunkPlan(
            start=start,
            rows=rows,
            in_ring=in_ring,
            place=start,
            filled=min(start + rows, self.ring),
            count=None,
            history=history,
            window=mask,
            plain=plain,
            compressed=compressed,
            emissions={kind: self._emission(kind, start, rows) for kind in self.kinds},
        )

    def rotations(self, start: int, rows: int) -> tuple[Rotation, Rotation]:
        """Of positions start .. start + rows - 1, in layers without compression and in those with."""
        return Rotation(*self._plain.rows(start, rows)), Rotation(*self._compressed.rows(start, rows))

    def emitted(self, kind: LayerKind, first: int, stop: int) -> mx.array:
        """Rotation of the compressed rows first .. stop - 1, complex64 [stop - first, K / 2]."""
        return self._compressed.at(np.arange(first, stop) * kind.ratio)

    def _ring_mask(self, start: int, rows: int) -> mx.array | None:
        """Visible slots [T, filled] once the chunk is written; None where one query sees them all.

        Once the ring is full they depend on the position modulo its size only, so all there are fit in one
        table [2 * ring, T, ring], and decoding makes no mask however long it goes on.
        """
        ring = self.ring
        if rows == 1 and start < self.window:
            return None
        if rows not in self._ring_masks:
            self._ring_masks[rows] = mx.stack(
                [_mask(ring_sight(at, rows, self.window, ring)) for at in range(2 * ring)]
            )
            mx.eval(self._ring_masks[rows])
        at = start if start < ring else ring + start % ring
        filled = min(start + rows, ring)
        return self._ring_masks[rows][at : at + 1, :, :filled].squeeze(
            0
        )  # a view, where [at] would be a copy

    def _emission(self, kind: LayerKind, start: int, rows: int) -> Emission:
        ratio = kind.ratio
        first, stop = start // ratio, (start + rows) // ratio
        is_first = first == 0
        pool_from, places = (first - (kind.indexed and not is_first)) * ratio, group_places(kind)
        mask = visible = None
        if rows > 1:
            counts = (np.arange(start, start + rows) + 1) // ratio
            visible = mx.array(counts.astype(np.int32))
            mask = _mask(np.arange(stop)[None, :] < counts[:, None])
        return Emission(
            start=first,
            stop=stop,
            count=None,
            phase=start % ratio,
            place=start,
            pool_from=pool_from,
            offset=pool_from % places,
            in_ring=pool_from >= start + rows - places,
            is_first=is_first,
            table=self.emitted(kind, first, stop) if stop > first else None,
            mask=mask,
            visible=visible,
        )


def ring_sight(start: int, rows: int, window: int, ring: int) -> npt.NDArray[np.bool_]:
    """[T, ring]: whether a query sees a slot. Slot s holds the last position = s mod ring."""
    last = start + rows - 1
    positions = last - (last - np.arange(ring)) % ring
    return _seen(start, rows, positions, window)


def _band_mask(start: int, rows: int, history: int, window: int) -> mx.array:
    """float32 [T, S] over the positions from `history` to the end of the chunk."""
    return _mask(_seen(start, rows, np.arange(history, start + rows), window))


def _seen(start: int, rows: int, positions: npt.NDArray[np.int64], window: int) -> npt.NDArray[np.bool_]:
    """positions [S] -> [T, S]: a query sees itself and window - 1 positions before."""
    queries = np.arange(start, start + rows)[:, None]
    seen: npt.NDArray[np.bool_] = (positions >= 0) & (positions <= queries) & (positions > queries - window)
    return seen


def _mask(seen: npt.NDArray[np.bool_]) -> mx.array:  # [T, S] -> the same shape
    return mx.array(np.where(seen, np.float32(0), np.float32(-np.inf)))
