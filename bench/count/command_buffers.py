"""How MLX cuts a step into command buffers, and what it keeps in memory meanwhile.

Read in MLX's Metal backend (0.32): a primitive is encoded into the open command buffer, which is handed over
once it holds more operations than one switch says, or its distinct arrays more elements than the other (in
2^20; of whatever width, whole buffers, however little of them is read). Ten that are handed over may wait for
the GPU; then the host waits for the oldest. What a command buffer reads stays in memory until it is done.
Primitives come in MLX's own order: from the outputs back, breadth first, at most 20 wide.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from bench.count.ours import Step
from bench.count.rules import RESHAPES, VIEWS, Walk
from bench.count.trace import Array, Primitive

WIDTH = 20
WAITING = 10


@dataclass(frozen=True)
class Switches:
    """MLX_MAX_OPS_PER_BUFFER and MLX_MAX_MB_PER_BUFFER, which counts elements in units of 2^20."""

    operations: int
    elements: int


@dataclass
class Cut:
    """`buffers`: of a step; `operations`: of its largest; `peak`: bytes of the step's own arrays that were in
    memory at once, on a GPU that ends a command buffer only when the host waits for it."""

    buffers: int = 0
    operations: int = 0
    peak: int = 0


@dataclass
class _CommandBuffer:
    border: int
    counts: bool = False  # among those that may wait: it was handed over because it was full
    operations: int = 0
    elements: int = 0
    seen: set[str] = field(default_factory=set)  # buffers that kernels in it read or write
    held: set[str] = field(default_factory=set)  # those, and what views look at
    copies: int = 0  # bytes of its own


def cut(step: Step, switches: Switches) -> Cut:
    """The step's borders are queued one after the other, each before the one before it is waited for."""
    simulation = _Simulation(step, switches)
    wanted = [*step.borders, tuple(array.key for array in step.graph.outputs)]
    for number, keys in enumerate(wanted):
        simulation.queue(number, keys)
        simulation.wait_for(number - 1)
    return simulation.cut


class _Simulation:
    def __init__(self, step: Step, switches: Switches) -> None:
        self.switches, self.cut = switches, Cut()
        self._walk = Walk(step.graph, step.weights, step.cache, 1.0, step.launches)
        self._walk.run()
        self._buffers = _Buffers(step, self._walk)
        self._todo = {id(p): p for p in step.graph.primitives}
        self._maker = {out.key: p for p in step.graph.primitives for out in p.outputs}
        # Of a buffer: what will still use it. Outputs are never let go of, borders until they are waited for.
        self._uses = Counter(self._buffers.of(a) for p in step.graph.primitives for a in p.inputs)
        self._borders = [[self._buffers.named(key) for key in keys] for keys in step.borders]
        passing = sum(map(len, step.borders))
        kept = step.graph.outputs[: len(step.graph.outputs) - passing]
        self._uses.update(self._buffers.of(array) for array in kept)
        for roots in self._borders:
            self._uses.update(roots)
        self._open = _CommandBuffer(0)
        self._waiting: list[_CommandBuffer] = []
        self._alive: dict[str, int] = {}  # bytes by buffer
        self._bytes = 0

    def queue(self, border: int, keys: Sequence[str]) -> None:
        """Encode all that `keys` need and is not there."""
        self._open.border = border
        for primitive in _in_order(self._todo, self._maker, keys):
            self._encode(primitive)
            full = self._open.operations > self.switches.operations
            if full or self._open.elements >> 20 > self.switches.elements:
                self._commit(border, counts=True)
            if sum(buffer.counts for buffer in self._waiting) > WAITING:
                self._commit(border)
                while not self._complete().counts:
                    pass
        self._commit(border)

    def wait_for(self, border: int) -> None:
        """Until all that was queued for `border` and before it is done."""
        while self._waiting and self._waiting[0].border <= border:
            self._complete()
        if 0 <= border < len(self._borders):
            self._let_go(self._borders[border])

    def _encode(self, primitive: Primitive) -> None:
        del self._todo[id(primitive)]
        operations, copied = self._work(primitive)
        open_, arrays = self._open, [*primitive.inputs, *primitive.outputs]
        open_.operations += operations
        open_.held |= {self._buffers.of(array) for array in arrays}
        if operations:
            for array in (*arrays, *copied):
                root = self._buffers.of(array)
                if root not in open_.seen:
                    open_.seen.add(root)
                    open_.elements += self._buffers.elements(array)
        open_.copies += sum(array.nbytes for array in copied)
        for output in primitive.outputs:
            if self._buffers.of(output) == output.key:
                self._alive[output.key] = output.nbytes
                self._bytes += output.nbytes
        copies = sum(buffer.copies for buffer in (*self._waiting, open_))
        self.cut.peak = max(self.cut.peak, self._bytes + copies)
        self._uses.subtract(self._buffers.of(array) for array in primitive.inputs)

    def _work(self, primitive: Primitive) -> tuple[int, list[Array]]:
        """How many kernels it launches, and the inputs that it copies first."""
        if primitive.name in VIEWS or primitive.name == "Contiguous":
            return int(self._buffers.of(primitive.outputs[0]) == primitive.outputs[0].key), []
        copied = self._walk.copied(primitive)
        return 1 + len(copied), copied

    def _commit(self, border: int, counts: bool = False) -> None:
        if self._open.held:
            self._open.counts = counts
            self.cut.buffers += self._open.operations > 0
            self.cut.operations = max(self.cut.operations, self._open.operations)
            self._waiting.append(self._open)
        self._open = _CommandBuffer(border)

    def _complete(self) -> _CommandBuffer:
        done = self._waiting.pop(0)
        self._let_go(done.held, uses=0)
        return done

    def _let_go(self, roots: Sequence[str] | set[str], uses: int = 1) -> None:
        for root in roots:
            self._uses[root] -= uses
            held = any(root in buffer.held for buffer in (*self._waiting, self._open))
            if not held and self._uses[root] <= 0:
                self._bytes -= self._alive.pop(root, 0)


class _Buffers:
    """Which arrays of a graph share a buffer: views, rows written in place, and a layer's experts, whose four
    matrices are views of one array of records."""

    def __init__(self, step: Step, walk: Walk) -> None:
        self._root: dict[str, str] = {}
        self._elements: dict[str, int] = {}
        experts = [key for key, name in step.names.items() if name.startswith("experts.")]
        nbytes = {array.key: array.nbytes for array in step.graph.inputs}
        for at in range(0, len(experts), 4):
            bank = experts[at : at + 4]
            self._root |= dict.fromkeys(bank, bank[0])
            self._elements[bank[0]] = sum(nbytes[key] for key in bank) // 4
        for primitive in step.graph.primitives:
            first = primitive.inputs[0] if primitive.inputs else None
            if first is None or not _looks_at_its_input(primitive, walk):
                continue
            for output in primitive.outputs:
                self._root[output.key] = self.of(first)
                self._elements.setdefault(self.of(first), math.prod(first.shape))

    def of(self, array: Array) -> str:
        return self.named(array.key)

    def named(self, key: str) -> str:
        return self._root.get(key, key)

    def elements(self, array: Array) -> int:
        return self._elements.get(self.of(array), math.prod(array.shape))


def _looks_at_its_input(primitive: Primitive, walk: Walk) -> bool:
    """Whether the output is the first input's buffer."""
    if primitive.name in VIEWS:
        return not (primitive.name in RESHAPES and not walk.dense(primitive.inputs[0]))
    if primitive.name == "Contiguous":
        return walk.dense(primitive.inputs[0])
    return primitive.name == "SliceUpdate"


def _in_order(
    todo: dict[int, Primitive], maker: dict[str, Primitive], keys: Sequence[str]
) -> Iterator[Primitive]:
    """Primitives that `keys` need, as MLX's eval takes them."""

    def inputs(node: Primitive | None) -> list[Primitive]:
        wanted = keys if node is None else [array.key for array in node.inputs]
        found = [maker[key] for key in wanted if key in maker]
        return [primitive for primitive in found if id(primitive) in todo]

    uses: Counter[int] = Counter()
    reached: list[Primitive | None] = [None]
    while reached:
        for primitive in inputs(reached.pop()):
            if id(primitive) not in uses:
                reached.append(primitive)
            uses[id(primitive)] += 1
    tape: list[Primitive | None] = [None]
    left: list[tuple[Primitive | None, int]] = []
    at = 0
    while at < len(tape) or left:
        if at < len(tape):
            node, begin = tape[at], 0
            at += 1
        else:
            node, begin = left.pop()
        wanted = inputs(node)
        for i in range(begin, len(wanted)):
            if len(tape) - at >= WIDTH:
                left.append((node, i))
                break
            primitive = wanted[i]
            uses[id(primitive)] -= 1
            if not uses[id(primitive)]:
                tape.append(primitive)
    yield from (node for node in reversed(tape) if node is not None)
