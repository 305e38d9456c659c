"""The bench of kernels: every kernel is in it, with inputs that the proof machine has nothing against."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from kernels.proven import Proven

from bench import kernels as bench
from bench.count.figures import true_config
from dsv4_mlx.config import parse_config
from dsv4_mlx.synthetic import small_config


def test_every_kernel_is_timed_at_true_size() -> None:
    launches = bench.distinct(true_config(), 4096)
    names = {launch.kernel.name for launch, _ in launches}
    assert {"hc_pre_mix", "hc_pre_finish", "compress", "route", "attend", "expert_ffn_down"} <= names
    count = sum(times for launch, times in launches if launch.kernel.name == "hc_pre_finish")
    assert count == 2 * true_config().layers


@pytest.mark.long
def test_made_up_inputs_are_legal() -> None:
    """At the sizes of the small model, executed and judged."""
    config = parse_config(json.dumps(small_config()), "small")
    machine = Proven(schedules=1)
    rows = list(bench.times(config, 128, machine, 1e9, at_once=1, repeats=1))
    assert {row.kernel for row in rows} == machine.ran
    assert all(row.bytes > 0 and row.microseconds > 0 for row in rows)


@pytest.mark.skipif(mx.metal.is_available(), reason="this machine has Metal")
def test_without_metal_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main([]) == 2
    assert capsys.readouterr().err.startswith("error: this machine has no Metal")
