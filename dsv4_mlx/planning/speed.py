"""How fast a model should be on a machine: predicted from counts, published figures and a simulated cache.

Not calibrated: no Mac has run this yet, and each figure of a Mac below is an estimate or was reported by
others of other programs. A prediction is a time of

    bytes      of weights, rows and activations that a step moves, over a part of the memory's speed
    launches   each of them some microseconds, and each command buffer in which they are handed over
    host       time, in which the GPU waits: a step's graph is built after the step before has ended
    waits      for the routed ids, which the host reads in every layer that pages
    reads      of experts from the disk and the page cache, beside what can be computed meanwhile

and what it can't exceed, `bound`, is computed apart from it: bytes over published speeds, nothing else.

The timeline of a step that pages is the one of `paging/paged_experts.py`, without its work. A layer computes
its attention and router, hands the routed ids to the host, and asks for what is missing. While that is read
the shared expert and the loaded experts are computed; then the experts that came. One disk serves requests
in the order they were made. Layers that route by token ask when the step begins, and part of the others'
misses are foreseen one layer earlier.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.chunking import EVERY
from dsv4_mlx.engine.memory import touched_state
from dsv4_mlx.machine.measure import copy_bandwidth, read_speed
from dsv4_mlx.machine.units import rate
from dsv4_mlx.planning.candidates import Candidate
from dsv4_mlx.planning.fit import Fit

MEASURED = 256 << 20  # bytes copied and read: some seconds
CONTEXT = 4096  # tokens before the one that is predicted
# Of a Mac, and estimates all of them until one is measured.
EFFICIENCY = 0.75  # of the memory's speed that a chain of small products reaches
DISPATCH = 2.6e-6  # seconds; 2.4 to 2.75 us reported for an M3 Ultra
COMMAND_BUFFER = 20e-6  # seconds; reported for an M3 Ultra
SYNC = 0.3e-3  # seconds; 0.2 to 0.35 ms reported for an M4
HOST = 12e-3  # seconds a step of LAYERS; 25 ms of processor time here, halved for an Apple P core
PAGE_CACHE_SPEED = 12e9  # bytes per second of records that the page cache holds
LATENCY = 0.1e-3  # seconds before reads bring anything
FORESEEN = 0.46  # of misses, one layer earlier: reported for this model
OPERATIONS_A_BYTE = 30  # float32 operations of the GPU per byte of its memory's speed: M3 Ultra 35, M5 Max 29
BUSY = 0.5  # of these operations that a product of tiles reaches
TILE = 32  # rows of one tile of ops/kernels/expert_ffn.py
CHUNKS_TOGETHER = 5  # of a long prompt, that read a layer's experts once: paging/pager.py at full width
LAYERS = 43  # of the step that was counted


@dataclass(frozen=True)
class ComputePath:
    """What the ledger counted of a step of V4-Flash at CONTEXT: launches, and bytes besides the weights as
    they are stored and the rows (the references join some in float32); launches of a prefill chunk; command
    buffers of both."""

    launches: int
    moved: int
    chunk_launches: int
    buffers: int
    chunk_buffers: int

    def launching(self) -> float:
        """Seconds of a step."""
        return self.launches * DISPATCH + self.buffers * COMMAND_BUFFER


KERNELS = ComputePath(1_015, 103_063_028, 1_646, 10, 87)
REFERENCES = ComputePath(11_144, 441_229_712 + 709_350_656, 13_476, 101, 171)

# In the paging simulator, of a layer's 256 experts: slots, share of uses that find theirs in one, share of
# the others whose records a page cache of CACHED_RECORDS a layer holds. A skewed trace with topics, the
# policy that pages: bench/paging/hit_table.py. Other sizes are taken between the rows by straight lines.
SIMULATED_EXPERTS, CACHED_RECORDS = 256, (0, 8, 16, 32, 64)
HITS = (
    (0, 0.0, (0.0, 0.232, 0.392, 0.575, 0.752)),
    (1, 0.03, (0.0, 0.232, 0.392, 0.575, 0.752)),
    (2, 0.06, (0.0, 0.206, 0.371, 0.561, 0.744)),
    (4, 0.177, (0.0, 0.098, 0.265, 0.495, 0.707)),
    (6, 0.209, (0.0, 0.065, 0.234, 0.474, 0.696)),
    (8, 0.317, (0.0, 0.056, 0.191, 0.414, 0.656)),
    (12, 0.439, (0.0, 0.053, 0.165, 0.358, 0.608)),
    (16, 0.516, (0.0, 0.052, 0.151, 0.328, 0.577)),
    (24, 0.614, (0.0, 0.053, 0.143, 0.296, 0.538)),
    (32, 0.676, (0.0, 0.055, 0.144, 0.281, 0.519)),
    (48, 0.76, (0.0, 0.054, 0.126, 0.247, 0.479)),
    (64, 0.819, (0.0, 0.055, 0.115, 0.228, 0.455)),
    (96, 0.893, (0.0, 0.035, 0.083, 0.193, 0.417)),
    (128, 0.935, (0.0, 0.015, 0.043, 0.112, 0.33)),
    (160, 0.962, (0.0, 0.001, 0.005, 0.043, 0.241)),
    (192, 0.981, (0.0, 0.0, 0.0, 0.009, 0.194)),
    (224, 0.994, (0.0, 0.0, 0.0, 0.007, 0.081)),
    (240, 0.995, (0.0, 0.0, 0.0, 0.0, 0.01)),
    (256, 1.0, (0.0, 0.0, 0.0, 0.0, 0.0)),
)


@dataclass(frozen=True)
class Speeds:
    """Bytes per second of memory, disk reads and network; None where nobody said or measured."""

    memory: float | None = None
    disk: float | None = None
    network: float | None = None


def measured_speeds(speeds: Speeds, folder: Path) -> Speeds:
    """With those that were not given measured here: memory, and the disk that holds `folder`, which
    exists."""
    disk = speeds.disk
    if disk is None:
        try:
            disk = read_speed(folder, MEASURED)
        except OSError:
            disk = None
    return replace(speeds, memory=speeds.memory or copy_bandwidth(MEASURED), disk=disk)


@dataclass(frozen=True)
class Prediction:
    """Tokens per second, None where a speed that it needs is not known.

    `low` if routing repeats itself by chance only, `high` if it does as in the simulator; `bound`: no run
    whose routing repeats itself as in the simulator is faster; `prefill`: of a long prompt. `missed`: bytes
    of experts per token that are not in a slot, low and high.
    """

    low: float | None
    high: float | None
    missed: tuple[int, int]
    bound: float | None = None
    prefill: float | None = None

    def describe(self) -> str:
        """Tokens per second for people; "-" where they are not known."""
        low, high = rate(self.low), rate(self.high)
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Shares:
    """Of the experts that layers need: in a slot, and in the page cache. The rest is read from the disk."""

    hits: float
    cached: float

    @property
    def read(self) -> float:
        return max(0.0, 1 - self.hits - self.cached)


def predict(
    candidate: Candidate,
    fit: Fit,
    config: ModelConfig,
    speeds: Speeds,
    element: int,
    page_cache: int = 0,
    path: ComputePath = KERNELS,
) -> Prediction | None:
    """None for a model that doesn't run. `element`: bytes of a number in the state's rows; `page_cache`:
    bytes of records that the system can hold beside the slots."""
    if fit.placement == "too large":
        return None
    experts = candidate.stored.experts
    routed = experts.layers * experts.each * experts.record_bytes
    records = page_cache / (experts.layers * experts.record_bytes) / experts.count
    worst, best = shares(fit.slots / experts.count, records)
    missed = round(routed * (1 - worst.hits)), round(routed * (1 - best.hits))
    if speeds.memory is None or (fit.placement == "paged" and speeds.disk is None):
        return Prediction(None, None, missed)
    costs = _costs(candidate, fit, config, speeds.memory, element, path)
    disk = DiskSpeed(LATENCY, speeds.disk or 1.0, max(PAGE_CACHE_SPEED, speeds.disk or 1.0))
    low, high = (
        tokens_per_second(costs, disk, experts.record_bytes, _needs(found, candidate, config))
        for found in (worst, best)
    )
    bound, read = speeds.memory / candidate.touched, routed * best.read
    if read:
        bound = min(bound, disk.speed / read)
    return Prediction(low, high, missed, bound, _prefill(candidate, fit, config, speeds, path))


def _costs(
    candidate: Candidate, fit: Fit, config: ModelConfig, memory: float, element: int, path: ComputePath
) -> Costs:
    """The launches are spread evenly over layers; a tenth of a layer's belongs to its shared expert."""
    experts, dense = candidate.stored.experts, candidate.dense
    layers, reached = experts.layers, memory * EFFICIENCY
    routed = layers * experts.each * experts.record_bytes
    moved = touched_state(config, CONTEXT, element) + path.moved * layers // LAYERS
    before = candidate.touched - routed - dense.shared - dense.head + moved
    launch = path.launching() / LAYERS
    paged = fit.placement == "paged"
    return Costs(
        before=before / layers / reached + 0.9 * launch + HOST / LAYERS,
        beside=dense.shared / layers / reached + 0.1 * launch,
        expert=experts.record_bytes / reached,
        sync=SYNC if paged else 0.0,
        outside=dense.head / reached + (0.0 if paged else SYNC),
    )


def _prefill(
    candidate: Candidate, fit: Fit, config: ModelConfig, speeds: Speeds, path: ComputePath
) -> float | None:
    """Tokens per second of a prompt of many chunks; None for the references, whose products were not counted.

    A chunk reads all weights that are in memory once, or is held up by its products, whose tiles are as full
    as evenly spread routing fills them; paged, the other experts come from the disk before. Attention, which
    grows with the context, is not in it.
    """
    if path is not KERNELS or speeds.memory is None:
        return None
    experts = candidate.stored.experts
    pairs = EVERY * experts.each
    used = min(experts.count, pairs)
    rows = used * -(-pairs // (used * TILE)) * TILE
    expert = 3 * config.hidden_size * config.expert_width
    work = 2 * (experts.layers * rows * expert + EVERY * candidate.dense.weights)
    weights = candidate.stored.others + experts.bytes(experts.count)
    seconds = max(weights / (speeds.memory * EFFICIENCY), work / (speeds.memory * OPERATIONS_A_BYTE * BUSY))
    missing = experts.layers * (experts.count - fit.slots) * experts.record_bytes
    if missing:
        seconds += missing / (speeds.disk or 1.0) / CHUNKS_TOGETHER
    share = experts.layers / LAYERS
    return EVERY / (
        seconds + share * (path.chunk_launches * DISPATCH + path.chunk_buffers * COMMAND_BUFFER + HOST) + SYNC
    )


TOKENS = 12  # whose misses are drawn for a prediction


def _needs(found: Shares, candidate: Candidate, config: ModelConfig) -> list[list[Need]]:
    """What layers need, token by token, in the shares of `found`: hits never above theirs, reads never
    below."""
    experts = candidate.stored.experts
    if found.hits >= 1:
        return [[Need(experts.each)] * experts.layers]
    tokens, at, each = [], 0, experts.each
    lots = _lots(TOKENS * experts.layers * each)
    for _ in range(TOKENS):
        layers = []
        for layer in range(experts.layers):
            drawn = lots[at : at + each]
            at += each
            hits = sum(lot <= found.hits for lot in drawn)
            near = sum(lot <= found.hits + found.cached for lot in drawn) - hits
            known = config.hashed(layer)
            layers.append(Need(hits, each - hits - near, near, known, 0.0 if known else FORESEEN))
        tokens.append(layers)
    return tokens


@cache
def _lots(count: int) -> list[float]:
    """1 / count, 2 / count ... 1 in an order without order, always the same."""
    lots = [(i + 1) / count for i in range(count)]
    random.Random(0).shuffle(lots)
    return lots


def shares(loaded: float, cached: float) -> tuple[Shares, Shares]:
    """If routing repeats itself by chance only, and as in the simulator; `loaded`, `cached`: the share of a
    layer's experts that are in slots, and whose records the page cache holds."""
    chance = Shares(loaded, (1 - loaded) * min(1.0, cached))
    hits, caught = simulated(loaded, cached)
    hits = max(loaded, hits)
    return chance, Shares(hits, max((1 - hits) * caught, chance.hits + chance.cached - hits))


def simulated(loaded: float, cached: float = 0.0) -> tuple[float, float]:
    """The simulator's share of hits, and of the others the share in the page cache; arguments as `shares`."""
    slots, records = loaded * SIMULATED_EXPERTS, cached * SIMULATED_EXPERTS
    columns = [_between([(row[0], row[2][i]) for row in HITS], slots) for i in range(len(CACHED_RECORDS))]
    caught = _between(list(zip(CACHED_RECORDS, columns, strict=True)), records)
    return _between([(row[0], row[1]) for row in HITS], slots), caught


def _between(points: Sequence[tuple[float, float]], x: float) -> float:
    """On the line through the points, whose x rise; the last one's y beyond it."""
    for (x0, y0), (x1, y1) in zip(points, points[1:], strict=False):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return points[-1][1]


@dataclass(frozen=True)
class Costs:
    """Seconds of computing: of a layer up to its router (`before`), of what runs beside reads (`beside`), of
    one routed expert (`expert`), of handing ids to the host (`sync`), and once a token (`outside`)."""

    before: float
    beside: float
    expert: float
    sync: float = 0.0
    outside: float = 0.0


@dataclass(frozen=True)
class DiskSpeed:
    """`latency` seconds before a batch of reads brings anything, then `speed` bytes per second.

    `cached` is the speed for records that the system's page cache holds.
    """

    latency: float
    speed: float
    cached: float

    def seconds(self, read: float, from_cache: float) -> float:
        """Bytes from the disk and from the page cache, asked for together."""
        return (self.latency + read / self.speed if read else 0.0) + from_cache / self.cached


@dataclass(frozen=True)
class Need:
    """What one layer needs for one token, in experts: loaded, to be read, to be copied from the page cache.

    Means are as good as counts. `known`: asked for when the step begins. `foreseen`: the share of reads that
    were begun while the layer before was computed.
    """

    hits: float
    read: float = 0.0
    cached: float = 0.0
    known: bool = False
    foreseen: float = 0.0


def token_seconds(costs: Costs, disk: DiskSpeed, record_bytes: int, layers: Sequence[Need]) -> float:
    """One token through all layers."""
    now = free = 0.0  # free: when the disk has done what it was asked so far
    ready = [0.0] * len(layers)  # when what was asked for early is there

    def ask(need: Need, share: float) -> float:
        nonlocal free
        seconds = disk.seconds(share * need.read * record_bytes, share * need.cached * record_bytes)
        if not seconds:
            return 0.0
        free = max(free, now) + seconds
        return free

    for number, need in enumerate(layers):
        if need.known:
            ready[number] = ask(need, 1.0)
    for number, need in enumerate(layers):
        now += costs.before + costs.sync
        if not need.known:
            ready[number] = max(ready[number], ask(need, 1 - need.foreseen if number else 1.0))
        if number + 1 < len(layers) and not layers[number + 1].known:
            ready[number + 1] = ask(layers[number + 1], layers[number + 1].foreseen)
        now = max(now + costs.beside + need.hits * costs.expert, ready[number])
        now += (need.read + need.cached) * costs.expert
    return now + costs.outside


def tokens_per_second(
    costs: Costs, disk: DiskSpeed, record_bytes: int, tokens: Iterable[Sequence[Need]]
) -> float:
    """The mean speed over tokens. Raises ValueError if there are none."""
    seconds = [token_seconds(costs, disk, record_bytes, layers) for layers in tokens]
    if not seconds:
        raise ValueError("no tokens to predict for")
    return len(seconds) / sum(seconds)
