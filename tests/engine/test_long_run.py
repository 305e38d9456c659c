"""Memory of a long answer is what the shapes say, and changes only where the row buffers grow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from memory_run import Sample, watch_alone

from dsv4_mlx.engine.buffer_cache import DECODE
from dsv4_mlx.model.state import GROWTH

# A buffer may be a cached one that is a little larger than asked for: seen at a few hundred bytes each. The
# last row, the draw from it and a step's numbers are there, too.
ROUNDING = 24 << 10
JITTER = 1 << 10  # by which the same arrays may so differ from step to step: far less than a growth step


def check(samples: Sequence[Sample], growth: int, slack: int) -> None:
    """Fixed memory: as the module says."""
    for before, after in zip(samples, samples[1:], strict=False):
        grew = (after.tokens - 1) // growth > (before.tokens - 1) // growth
        changed = abs(after.active - before.active) > JITTER
        assert changed == grew, f"at {after.tokens} tokens: {before} -> {after}"
    for sample in samples:
        assert abs(sample.active - sample.predicted) <= 0.01 * sample.predicted + slack, sample
        assert sample.cache <= DECODE == 256 << 20
    counts = {sample.arrays for sample in samples if sample.arrays is not None}
    assert len(counts) == 1, counts


def levels(samples: Sequence[Sample]) -> int:
    """How many different amounts of memory, but for jitter."""
    amounts = sorted(sample.active for sample in samples)
    return 1 + sum(b - a > JITTER for a, b in zip(amounts, amounts[1:], strict=False))


def test_memory_is_fixed_between_growth_steps(tmp_path: Path) -> None:
    samples = watch_alone(tmp_path, 1024, 400, growth=128, every=37)
    assert levels(samples) == 4
    check(samples, 128, ROUNDING)


@pytest.mark.long
def test_twenty_thousand_tokens(tmp_path: Path) -> None:
    samples = watch_alone(tmp_path, 32_768, 20_041, growth=GROWTH, every=500)
    assert levels(samples) == 2
    check(samples, GROWTH, 0)
