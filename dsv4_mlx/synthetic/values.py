"""The bytes of a synthetic tensor: random, reproducible from (seed, name) alone, and sensibly sized.

A tensor's bytes don't depend on how many layers or experts the checkpoint has. Random bits are mapped to
values through tables of normal quantiles, which is several times faster than drawing normals and leaves no
room for differences between platforms: a true-size layer takes seconds.

Sizes are chosen so that a forward pass stays alive: linears keep their input's scale, streams start as an
even mix, expert scores are spread, logits have a standard deviation near 2.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from dsv4_mlx.checkpoint.inventory import ITEM_BYTES, Tensor, Weight
from dsv4_mlx.config import ModelConfig

Bytes = npt.NDArray[np.uint8]

BLOCK = 2**20  # bytes made at a time
FP8_SPREAD = 64.0  # standard deviation of the E4M3 codes' values; 4.2 of them stay below 448
FP4_SPREAD = math.sqrt(68.5 / 8)  # of E2M1 codes drawn evenly
SCALE_STEPS = np.array([-1, 0, 0, 1], dtype=np.int16)  # exponents of neighbouring blocks differ
SCALE_SPREAD = math.sqrt((0.25 + 1 + 1 + 4) / 4)  # what those steps do to the standard deviation

# How much larger (or smaller) than 1/sqrt(inputs) a matrix is. The attention output is an average, so
# what follows it makes up for that; expert outputs stay near the size of the stream.
GAINS = {
    "wo_a": 1.5,
    "wo_b": 1.5,
    "w2": 1.5,
    "gate": 1.5,
    "head": 2.0,
    "e_proj": 0.7,
    "h_proj": 0.7,
    "markov_w2": 0.5,
}


def tensor_bytes(config: ModelConfig, weight: Weight, tensor: Tensor, seed: int) -> Iterator[Bytes]:
    """The tensor's bytes in order, in blocks of at most `BLOCK` (a row of tid2eid is never split)."""
    random = _Random(seed, tensor.name)
    if weight.form != "raw":
        codes, scale = weight.tensors()
        if tensor.name == scale.name:
            yield from _scales(random, weight, tensor)
        elif weight.form == "fp8":
            yield from (_fp8_codes()[random.words(n)] for n in _blocks(codes.bytes, 1))
        else:
            yield from (random.bytes(n) for n in _blocks(codes.bytes, 1))
        return
    if tensor.dtypes[0] == "I64":
        yield from _hash_table(random, config.experts, tensor.shape)
        return
    centre, spread = _centre_and_spread(config, weight)
    yield from _normals(random, tensor, centre, spread)


class _Random:
    """A stream of random bits that belongs to one tensor."""

    def __init__(self, seed: int, name: str) -> None:
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        self.generator = np.random.SFC64(int.from_bytes(digest[:16], "little"))

    def bytes(self, count: int) -> Bytes:
        raw = self.generator.random_raw(-(-count // 8))
        return np.asarray(raw, dtype="<u8").view(np.uint8)[:count]

    def words(self, count: int) -> npt.NDArray[np.uint16]:
        return self.bytes(2 * count).view(np.uint16)


def _blocks(count: int, item: int, limit: int = BLOCK) -> Iterator[int]:
    """`count` items cut into runs of at most `limit` bytes."""
    step = max(1, limit // item)
    for start in range(0, count, step):
        yield min(step, count - start)


@cache
def _quantiles() -> npt.NDArray[np.float64]:
    """[65536] standard normal quantiles, rounded so that every platform's maths library agrees."""
    inverse = NormalDist().inv_cdf
    exact = np.array([inverse((i + 0.5) / 65536) for i in range(65536)])
    return np.asarray(np.round(exact * 65536) / 65536)


@cache
def _fp8_codes() -> Bytes:
    """[65536] E4M3 codes of normal quantiles with standard deviation FP8_SPREAD; never a NaN code."""
    values = _quantiles() * FP8_SPREAD
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    table = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    middles = (table[:126] + table[1:127]) / 2  # code 127 is NaN
    nearest = np.searchsorted(middles, np.abs(values)).astype(np.uint8)
    return np.asarray(nearest | np.where(values < 0, np.uint8(128), np.uint8(0)), dtype=np.uint8)


def _scales(random: _Random, weight: Weight, tensor: Tensor) -> Iterator[Bytes]:
    spread = FP8_SPREAD if weight.form == "fp8" else FP4_SPREAD
    wanted = _gain(weight) / math.sqrt(weight.shape[1])
    exponent = round(math.log2(wanted / (spread * SCALE_SPREAD)))
    table = (np.resize(SCALE_STEPS, 256) + (127 + exponent)).astype(np.uint8)
    for count in _blocks(math.prod(tensor.shape), ITEM_BYTES[tensor.dtypes[0]]):
        codes = table[random.bytes(count)]
        if tensor.dtypes[0] == "F32":  # 2^(code - 127), whose exponent's field is the code
            codes = (codes.astype("<u4") << 23).view(np.uint8)
        yield codes


def least_scales(tensor: Tensor) -> Iterator[Bytes]:
    """F32 scales of 2^-127, the E8M0 byte 0."""
    for count in _blocks(math.prod(tensor.shape), ITEM_BYTES["F32"]):
        yield np.full(count, 0x00400000, "<u4").view(np.uint8)


def _gain(weight: Weight) -> float:
    return GAINS.get(weight.name.removesuffix(".weight").rsplit(".", 1)[-1], 1.0)


def _centre_and_spread(c: ModelConfig, weight: Weight) -> tuple[npt.NDArray[np.float64] | float, float]:
    """Mean (one number or one per element) and standard deviation of a raw tensor."""
    name = weight.name.rsplit(".", 1)[-1]
    if weight.part == "norm":
        return 1.0, 0.1
    if weight.part == "sink":
        return 0.0, 1.0
    if weight.part == "hyper":
        if name.endswith("_fn"):
            return 0.0, 0.3 / math.sqrt(weight.shape[1])
        if name.endswith("_scale"):
            return 1.0, 0.1
        even = np.full(c.streams, -math.log(c.streams - 1) if c.streams > 1 else 3.0)
        if "head" in name:
            return even, 0.3  # each stream counts for about 1/streams
        mixing = 3 * np.eye(c.streams).reshape(-1)  # streams mostly stay themselves
        return np.concatenate([even, np.zeros(c.streams), mixing]), 0.3
    if name == "ape":
        return 0.0, 0.5
    if name == "bias":
        return 0.0, 0.1
    if weight.part == "embedding" or name == "weight" and "markov_w1" in weight.name:
        return 0.0, 1.0
    return 0.0, _gain(weight) / math.sqrt(weight.shape[-1])


def _normals(
    random: _Random, tensor: Tensor, centre: npt.NDArray[np.float64] | float, spread: float
) -> Iterator[Bytes]:
    items = math.prod(tensor.shape)
    if not isinstance(centre, float):  # a short vector
        values = centre + spread * _quantiles()[random.words(items)]
        yield values.astype("<f4").view(np.uint8)
        return
    table = (centre + spread * _quantiles()).astype("<f4")
    if tensor.dtypes[0] == "BF16":
        narrow = _bfloat16(table)
        yield from (narrow[random.words(n)].view(np.uint8) for n in _blocks(items, 2))
    else:
        yield from (table[random.words(n)].view(np.uint8) for n in _blocks(items, 4))


def _bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """float32 -> bfloat16 bits, round to nearest even (finite input)."""
    bits = values.view(np.uint32)
    return np.asarray((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, dtype=np.uint16)


def _hash_table(random: _Random, experts: int, shape: tuple[int, ...]) -> Iterator[Bytes]:
    """I64 [tokens, experts per token]: distinct expert ids in each row, every set equally likely."""
    tokens, chosen = shape
    for rows in _blocks(tokens, 8 * chosen, 2**20):
        draws = random.bytes(8 * rows * chosen).view("<u8").reshape(chosen, rows)
        table = np.empty((rows, chosen), dtype="<i8")
        for column in range(chosen):
            # The draw is an index into the ids not yet taken; counting past the taken ones finds the id.
            pick = (draws[column] % np.uint64(experts - column)).astype(np.int64)
            for taken in np.sort(table[:, :column], axis=1).T:
                pick += pick >= taken
            table[:, column] = pick
        yield table.view(np.uint8).reshape(-1)
