"""Every op has a test of its own."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[3]
# files that hold two or three ops of one kind
TOGETHER = {"hc_pre": "hyper_connections", "hc_post": "hyper_connections", "hc_head": "hyper_connections"}
TOGETHER |= {"room": "attend"}  # of attend and index_select


def test_every_reference_has_a_test() -> None:
    ops = {path.stem for path in (ROOT / "dsv4_mlx/ops/reference").glob("*.py")} - {"__init__"}
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")} - {
        "pairing"
    }
    assert {TOGETHER.get(op, op) for op in ops} == tests
