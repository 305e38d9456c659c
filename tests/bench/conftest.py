"""The ledger counted once for all tests of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from bench.count import figures  # noqa: E402
from bench.count.figures import Figures  # noqa: E402

CONTEXT = 4096


@pytest.fixture(scope="session")
def ledger() -> Figures:
    """Every figure at the shortest context; the others are traced the same way."""
    return figures.ledger((CONTEXT,))
