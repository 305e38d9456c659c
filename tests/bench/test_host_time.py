"""Python's share of a decode step at the true size, held to its bars. Processor time of this machine."""

from __future__ import annotations

import pytest

from bench.host_time import figures


@pytest.mark.long
def test_a_step_is_replayed_in_a_fraction_of_its_build() -> None:
    found = figures()
    for context, inputs in (("4096", 0.3), ("1048576", 0.5)):
        steps = found["milliseconds"][context]
        quiet, both = steps["nothing closes"], steps["CSA and HCA rows close"]
        assert quiet["inputs and replay"] <= min(3.0, quiet["plain"] / 8)
        assert both["inputs and replay"] <= 4.0
        assert quiet["inputs"] <= inputs and quiet["a trace"] <= 200
    graph = found["graph"]["nothing closes"]
    assert graph["nodes"] <= 1600 and graph["fused"] == 0
