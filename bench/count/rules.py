"""What each primitive costs on Metal: a dispatch, nothing, or perhaps a copy; and the bytes it moves.

Read in MLX's Metal backend (0.32.4), primitive by primitive. A primitive that is not listed is one dispatch.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from bench.count.trace import Array, Graph, Primitive
from dsv4_mlx.ops.kernels.launch import Launch

# These change shape and strides of a buffer and launch nothing.
VIEWS = frozenset(  # fmt: skip
    (
        "AsStrided",
        "Broadcast",
        "BroadcastAxes",
        "Copy",
        "CustomTransforms",
        "Depends",
        "ExpandDims",
        "Flatten",
        "NumberOfElements",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "StopGradient",
        "Transpose",
        "Unflatten",
        "View",
    )
)
# Of these, the ones that copy when the input's layout doesn't allow the new shape.
RESHAPES = frozenset(("Flatten", "Reshape", "Unflatten", "View"))
# These want rows without gaps and copy an input that has them. For each: how many leading inputs.
DENSE = {"RMSNorm": 1, "Softmax": 1, "LogSumExp": 1, "QuantizedMatmul": 1, "GatherQMM": 1,
         "Hadamard": 1, "ArgSort": 1, "Sort": 1, "ArgPartition": 1}  # fmt: skip
# These read only the rows they pick.
PICKS = frozenset(("Gather", "GatherAxis"))


@dataclass
class Count:
    """Figures of one step. Bytes are read and written by kernels, an operand once per kernel."""

    dispatches: int = 0
    copies: int = 0
    metadata: int = 0
    bytes_weights: int = 0
    bytes_cache: int = 0
    bytes_other: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # dispatches by primitive
    read: Counter[str] = field(default_factory=Counter)  # bytes of weights by the graph's key


@dataclass
class _Source:
    """Where an array's values are: a buffer of some role, seen through views."""

    role: str
    nbytes: int
    dense: bool  # rows follow each other without gaps
    key: str = ""  # of the weight or cache buffer


class Walk:
    """Walks a graph once."""

    def __init__(
        self, graph: Graph, weights: Set[str], cache: Set[str], chosen: float, launches: Mapping[str, Launch]
    ) -> None:
        """`chosen`: the share of a bank of experts that a product over it reads.

        `launches`: of our kernels, by the name of the primitive that stands for each.
        """
        self.graph, self.chosen, self.launches = graph, chosen, launches
        self.count = Count()
        self.sources: dict[str, _Source] = {}
        for array in graph.inputs:
            role = "weights" if array.key in weights else "cache" if array.key in cache else "other"
            self.sources[array.key] = _Source(role, array.nbytes, True, array.key)

    def run(self) -> Count:
        for primitive in self.graph.primitives:
            if primitive.name in VIEWS:
                self._view(primitive)
            elif primitive.name == "Contiguous":
                self._contiguous(primitive)
            elif primitive.name in self.launches:
                self._launch(primitive, self.launches[primitive.name])
            else:
                self._kernel(primitive)
        return self.count

    def dense(self, array: Array) -> bool:
        """Once run: whether the array's rows follow each other without gaps."""
        return self._source(array).dense

    def copied(self, primitive: Primitive) -> list[Array]:
        """Once run: inputs of a kernel that are copied first, because they have gaps."""
        launch = self.launches.get(primitive.name)
        if launch is not None:
            wants = 0 if launch.kernel.strided else len(primitive.inputs)
        else:
            wants = DENSE.get(primitive.name, 0)
        return [array for array in primitive.inputs[:wants] if not self.dense(array)]

    def _source(self, array: Array) -> _Source:
        return self.sources.get(array.key) or _Source("other", array.nbytes, True)

    def _view(self, primitive: Primitive) -> None:
        self.count.metadata += 1
        source = self._source(primitive.inputs[0])
        for output in primitive.outputs:
            copied = primitive.name in RESHAPES and not source.dense
            self.count.copies += copied
            dense = copied or (source.dense and _keeps_density(primitive, output))
            nbytes = min(source.nbytes, output.nbytes)
            role = "other" if copied else source.role
            if copied:
                self._move(source, nbytes)
                self.count.bytes_other += nbytes
            self.sources[output.key] = _Source(role, nbytes, dense, source.key)

    def _contiguous(self, primitive: Primitive) -> None:
        source, output = self._source(primitive.inputs[0]), primitive.outputs[0]
        if source.dense:
            self.count.metadata += 1
            self.sources[output.key] = source
        else:
            self.count.copies += 1
            self._move(source, output.nbytes)
            self.count.bytes_other += output.nbytes

    def _launch(self, primitive: Primitive, launch: Launch) -> None:
        """A kernel of ours: it says itself what it reads. Unless it takes strides, gaps are copied away."""
        self.count.dispatches += 1
        self.count.kinds[launch.kernel.name] += 1
        copied = self.copied(primitive)
        for array, nbytes in zip(primitive.inputs, launch.loaded().values(), strict=True):
            source = self._source(array)
            if array in copied:
                self.count.copies += 1
                self._move(source, array.nbytes)
                self.count.bytes_other += array.nbytes + nbytes
            else:
                self._move(source, nbytes)
        self.count.bytes_other += sum(launch.stored().values())

    def _kernel(self, primitive: Primitive) -> None:
        self.count.dispatches += 1
        self.count.kinds[primitive.name] += 1
        sources = [self._source(array) for array in primitive.inputs]
        self.count.copies += len(self.copied(primitive))
        if primitive.name == "SliceUpdate":
            self._write_rows(primitive, sources)
            return
        written = sum(array.nbytes for array in primitive.outputs)
        for position, source in enumerate(sources):
            nbytes = source.nbytes
            if primitive.name in PICKS and position == 0:
                nbytes = min(nbytes, written)
            if primitive.name == "GatherQMM" and source.role == "weights":
                nbytes = math.ceil(nbytes * self.chosen)
            self._move(source, nbytes)
        self.count.bytes_other += written

    def _write_rows(self, primitive: Primitive, sources: list[_Source]) -> None:
        """Rows into a buffer that nothing else refers to: written in place."""
        buffer, rows = sources[:2]
        self._move(rows, rows.nbytes)
        self._move(buffer, primitive.inputs[1].nbytes)
        self.sources[primitive.outputs[0].key] = buffer

    def _move(self, source: _Source, nbytes: int) -> None:
        if source.role == "weights":
            self.count.read[source.key] += nbytes
        name = f"bytes_{source.role}"
        setattr(self.count, name, getattr(self.count, name) + nbytes)


def _keeps_density(primitive: Primitive, output: Array) -> bool:
    """Whether the view of a dense array is dense again."""
    shape = primitive.inputs[0].shape
    if primitive.name in ("Broadcast", "BroadcastAxes"):
        return math.prod(output.shape) == math.prod(shape)
    if primitive.name == "Transpose":
        order = primitive.arguments[0]
        moved = [axis for axis in order if shape[axis] != 1]
        return moved == sorted(moved)
    if primitive.name in ("Slice", "Split"):
        # Dense where nothing before the cut axis has more than one element.
        cut = [i for i, (a, b) in enumerate(zip(shape, output.shape, strict=True)) if a != b]
        return not cut or (len(cut) == 1 and all(n == 1 for n in shape[: cut[0]]))
    return primitive.name != "AsStrided"


def count(
    graph: Graph,
    *,
    weights: Set[str],
    cache: Set[str],
    chosen: float,
    launches: Mapping[str, Launch] | None = None,
) -> Count:
    """`chosen`: the share of a bank of experts that a product over it reads."""
    return Walk(graph, weights, cache, chosen, launches or {}).run()


def share_of_experts(rows: int, chosen: int, experts: int) -> float:
    """Expected share of a layer's experts that `rows` tokens use, each `chosen` of them at random."""
    return 1 - (1 - chosen / experts) ** rows
