"""What a model remembers of the tokens it has seen.

Every write is addressed by absolute position, so running a step twice leaves the same state, and taking
back up to `SLACK` tokens is a change of `length`: rings hold SLACK rows more than the arithmetic needs, and
a compressed row that a taken-back token finished is rewritten before any query can see it.

Buffers are owned here and by nothing else. A second reference to one, such as a view kept alive, turns
the next row write into a copy of the whole buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakSet

import mlx.core as mx

from dsv4_mlx.config import LayerKind, ModelConfig
from dsv4_mlx.ops.types import Number

SLACK = 8  # tokens that can be taken back
GROWTH = 16_384  # tokens by which row buffers grow
_NOTHING = mx.zeros((0, 0, 0))


class Ring:
    """The last rows of a sequence: position t is at index t mod size. buffer [B, size, width]."""

    def __init__(self, batch: int, size: int, width: int, dtype: mx.Dtype) -> None:
        self.buffer = mx.zeros((batch, size, width), dtype)

    @property
    def size(self) -> int:
        return self.buffer.shape[1]

    def write(self, rows: mx.array, start: Number) -> None:
        """Store rows [B, T, K] of positions start .. start + T - 1; only the last `size` can be kept.

        Changes the ring; written twice at one position, the later stays. `start` as an array [1, 1, 1] is
        the index of a single row in the ring.
        """
        if not isinstance(start, int):
            self.buffer = mx.put_along_axis(self.buffer, start, rows, axis=1)
            return
        count = rows.shape[1]
        if count > self.size:
            rows, start, count = rows[:, count - self.size :], start + count - self.size, self.size
        at = start % self.size
        whole = min(count, self.size - at)
        if (
            whole == self.size > 1
        ):  # in two: at once it would be a view, and keep all rows that it is cut from
            self.buffer[:, :1] = rows[:, :1]
            self.buffer[:, 1:] = rows[:, 1:]
            return
        self.buffer[:, at : at + whole] = rows[:, :whole]
        if whole < count:
            self.buffer[:, : count - whole] = rows[:, whole:]

    def filled(self, count: int) -> mx.array:
        """The rows that hold a position, while no more than `count` were written: [B, count, K].

        Changes nothing; valid until the next write, so to be dropped before it.
        """
        return self.buffer if count == self.size else self.buffer[:, :count]

    def read(self, start: int, end: int) -> mx.array:
        """Rows [B, end - start, K] of positions start .. end - 1. Changes nothing; valid as `filled`."""
        at, count = start % self.size, end - start
        whole = min(count, self.size - at)
        if whole == count:
            return self.buffer[:, at : at + count]
        return mx.concatenate([self.buffer[:, at:], self.buffer[:, : count - whole]], axis=1)


class RowBuffer:
    """Append-only rows, preallocated: row e is at index e. buffer [B, capacity, width]."""

    def __init__(self, batch: int, width: int, dtype: mx.Dtype) -> None:
        self.buffer = mx.zeros((batch, 0, width), dtype)

    def grow(self, capacity: int) -> None:
        """Make room for `capacity` rows in all: changes the buffer, never its rows."""
        missing = capacity - self.buffer.shape[1]
        if missing > 0:
            batch, _, width = self.buffer.shape
            empty = mx.zeros((batch, missing, width), self.buffer.dtype)
            self.buffer = mx.concatenate([self.buffer, empty], axis=1)

    def shrink(self, capacity: int) -> None:
        """Keep the first `capacity` rows, in less memory: changes the buffer, which is copied."""
        self.buffer = mx.contiguous(self.buffer[:, :capacity])

    def write(self, rows: mx.array, start: Number) -> None:
        """Store rows [B, T, K] at start, start + 1, ...: changes the buffer, which has room (`grow`). `start`
        as an array [1, 1, 1]: a single row.
        """
        if not isinstance(start, int):
            self.buffer = mx.put_along_axis(self.buffer, start, rows, axis=1)
            return
        self.buffer[:, start : start + rows.shape[1]] = rows

    def read(self, count: int) -> mx.array:
        """The first `count` rows [B, count, K]. Changes nothing; a view: drop it before the next write."""
        return self.buffer[:, :count]


def window_places(config: ModelConfig) -> int:
    """Rows of a window's ring."""
    return config.window + SLACK


def group_places(kind: LayerKind) -> int:
    """Rows of the ring of an open group."""
    return kind.halves * kind.ratio + SLACK


class LayerState:
    """One layer's memory: the window ring; with compression, the open group and the compressed rows."""

    def __init__(self, config: ModelConfig, kind: LayerKind, batch: int, dtype: mx.Dtype) -> None:
        self.kind = kind
        self.window = Ring(batch, window_places(config), config.head_dim, dtype)
        self.group: Ring | None = None
        self.rows: RowBuffer | None = None
        self.index_rows: RowBuffer | None = None
        if kind.ratio:
            width = 2 * kind.halves * (config.head_dim + kind.indexed * config.index_dim)
            self.group = Ring(batch, group_places(kind), width, mx.float32)
            self.rows = RowBuffer(batch, config.head_dim, dtype)
            if kind.indexed:
                self.index_rows = RowBuffer(batch, config.index_dim, dtype)

    @property
    def compressed(self) -> tuple[Ring, RowBuffer]:
        """Open group and compressed rows of a layer that has them."""
        if self.group is None or self.rows is None:
            raise TypeError("this layer has no compressor")
        return self.group, self.rows

    def rings(self) -> list[mx.array]:
        """The rings [B, S, K] as they are now: values that stay valid, for the next write copies them."""
        return [mx.array(b.buffer) for b in self.buffers() if isinstance(b, Ring)]

    def arrays(self) -> list[mx.array]:
        """Every array of the layer, as of ModelState."""
        return [row_buffer.buffer for row_buffer in self.buffers()]

    def buffers(self) -> list[Ring | RowBuffer]:
        """Those this layer has, in the order of a snapshot. The same objects as long as the state lives."""
        return [b for b in (self.window, self.group, self.rows, self.index_rows) if b is not None]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A point a state can return to: `length` tokens and the rings as they were. Rows stay in the state.

    So it holds only as long as the state does not write below `length`; the state knows which ones hold.
    """

    length: int
    reached: int
    rings: tuple[mx.array, ...]


class ModelState:
    """The memory of one token sequence: every layer's, and the `length` it has seen.

    `growth` is the number of tokens by which row buffers grow, a multiple of the largest ratio.
    """

    def __init__(self, config: ModelConfig, dtype: mx.Dtype, batch: int = 1, growth: int = GROWTH) -> None:
        if growth < 1 or growth % max(1, *(kind.ratio for kind in config.kinds)):
            raise ValueError(f"growth is {growth}, expected a multiple of every compression ratio")
        blocks = config.layers + config.draft_blocks
        self.layers = [LayerState(config, config.kind(i), batch, dtype) for i in range(blocks)]
        self.growth = growth
        self.length = 0
        self.reached = 0  # the furthest length since the rings were last replaced
        self.capacity = 0
        self._holding: WeakSet[Snapshot] = WeakSet()  # snapshots whose rows are still here

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` tokens in all, in steps of `growth`; the rows and `length` stay."""
        if tokens <= self.capacity:
            return
        self.capacity = -(-tokens // self.growth) * self.growth
        for layer in self.layers:
            for rows in (layer.rows, layer.index_rows):
                if rows is not None:
                    rows.grow(self.capacity // layer.kind.ratio)

    def shrink(self) -> None:
        """Give back what `reserve` made beyond the present length; a buffer that shrinks is copied."""
        capacity = -(-self.length // self.growth) * self.growth
        if capacity < self.capacity:
            self.capacity = capacity
            for layer in self.layers:
                for rows in (layer.rows, layer.index_rows):
                    if rows is not None:
                        rows.shrink(capacity // layer.kind.ratio)

    def arrays(self) -> list[mx.array]:
        """Every array of the state, [B, S or N, K]: evaluate them each step, or lazy graphs pile up.

        Valid until the next write; one that is kept makes that write copy its whole buffer.
        """
        return [array for layer in self.layers for array in layer.arrays()]

    def snapshot(self, taken: dict[int, list[mx.array]] | None = None) -> Snapshot:
        """Remember this point; changes nothing. Valid until a row below its length is written (`holds`).

        Rings are values: the next write copies the one that is shared. `taken`: the rings [B, S, K] of layers
        that have gone on since, as LayerState.rings gave them at this point.
        """
        found = [
            layer.rings() if taken is None or i not in taken else taken[i]
            for i, layer in enumerate(self.layers)
        ]
        point = Snapshot(self.length, self.reached, tuple(ring for rings in found for ring in rings))
        self._holding.add(point)
        return point

    def holds(self, snapshot: Snapshot) -> bool:
        """Whether `snapshot` is of this sequence, and no row below its length was written since."""
        return snapshot in self._holding

    def restore(self, snapshot: Snapshot) -> None:
        """Return to a point that this state holds. Raises ValueError for any other."""
        if not self.holds(snapshot):
            raise ValueError(f"the snapshot of {snapshot.length} tokens is not held by this state")
        for ring, buffer in zip(self._rings(), snapshot.rings, strict=True):
            ring.buffer = mx.array(buffer)
        self.length, self.reached = snapshot.length, snapshot.reached

    def abandon(self, start: Snapshot) -> None:
        """Return to the present point, of which `start` is, from a pass that was left between layers.

        What the pass has written lies beyond it, in the rows of points that may have stood there before.
        """
        self._forget_points()
        self.restore(start)

    def advance(self, tokens: int) -> None:
        """Count `tokens` tokens whose rows have been written at the end of the sequence."""
        self._forget_points()
        self.length += tokens
        self.reached = max(self.reached, self.length)

    def take_back(self, tokens: int) -> None:
        """Forget the last `tokens` tokens: never further than SLACK behind the furthest point reached."""
        most = self.retractable
        if not 0 <= tokens <= most:
            raise ValueError(f"can take back 0 to {most} tokens here, not {tokens}")
        self.length -= tokens

    @property
    def retractable(self) -> int:
        """How many tokens can be taken back."""
        return self.length - max(0, self.reached - SLACK)

    def fork(self) -> ModelState:
        """An independent copy: 6,880 bytes per token at full size and 16 bit, and the rings.

        Nothing is copied yet: whichever of the two writes to a shared buffer first copies it. The twin
        holds the same snapshots.
        """
        twin = object.__new__(ModelState)
        twin.layers = [_copied(layer) for layer in self.layers]
        twin.growth = self.growth
        twin.length, twin.reached, twin.capacity = self.length, self.reached, self.capacity
        twin._holding = WeakSet(self._holding)
        return twin

    def let_go(self) -> None:
        """Hold no buffer any more, until each is given another. Changes the state."""
        for layer in self.layers:
            for buffer in layer.buffers():
                buffer.buffer = _NOTHING

    def _forget_points(self) -> None:
        """Rows beyond `length` have been written over: points that stand on them no longer hold."""
        if any(point.length > self.length for point in self._holding):
            # Equal tokens would not help: rows computed in chunks cut elsewhere differ in their last bits.
            self._holding = WeakSet(point for point in self._holding if point.length <= self.length)

    def _rings(self) -> list[Ring]:
        return [b for layer in self.layers for b in layer.buffers() if isinstance(b, Ring)]


def _copied(layer: LayerState) -> LayerState:
    twin = object.__new__(LayerState)
    twin.kind = layer.kind
    for name in ("window", "group", "rows", "index_rows"):
        buffer = getattr(layer, name)
        if buffer is not None:
            copy = object.__new__(type(buffer))
            copy.buffer = mx.array(buffer.buffer)
            buffer = copy
        setattr(twin, name, buffer)
    return twin
