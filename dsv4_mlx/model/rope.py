"""Rotary angles as tables of complex numbers, made on the host and shared by all layers of a kind."""

from __future__ import annotations

import math
from collections import OrderedDict

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.config import ModelConfig, Yarn

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
