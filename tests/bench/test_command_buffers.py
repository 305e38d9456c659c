"""Where MLX ends command buffers: its rule on graphs done by hand, and the true model's as it is set here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import mlx.core as mx
import pytest

from bench.count.command_buffers import Switches, cut
from bench.count.figures import TOGETHER
from bench.count.ours import Step, trace_ours, true_config, whole_step
from bench.count.report import RESULTS
from bench.count.trace import trace
from dsv4_mlx.config import parse_config
from dsv4_mlx.engine.buffer_cache import prefill_limit
from dsv4_mlx.engine.memory import workspace
from dsv4_mlx.errors import UsageError
from dsv4_mlx.machine import mlx_switches
from dsv4_mlx.planning.speed import KERNELS, REFERENCES
from dsv4_mlx.synthetic.configs import release_config

LEDGER = RESULTS / "ledger.json"
SET = Switches(mlx_switches.OPERATIONS, mlx_switches.ELEMENTS)
FLASH = 155_000_000_000  # bytes of its smallest recipe, about
MB = 1 << 20


def chain(length: int, size: int = 4) -> Step:
    """x + 1, of that + 1, ...: each alone needed by the next."""

    def run(x: mx.array) -> list[mx.array]:
        for _ in range(length):
            x = mx.sin(x)
        return [x]

    return whole_step(trace(run, [mx.zeros(size)]), 0, 1, [])


@pytest.mark.parametrize(
    ("operations", "length", "buffers"), [(1, 1, 1), (1, 2, 1), (1, 3, 2), (3, 8, 2), (3, 9, 3), (100, 8, 1)]
)
def test_a_command_buffer_ends_once_it_holds_more_operations(
    operations: int, length: int, buffers: int
) -> None:
    assert cut(chain(length), Switches(operations, 1 << 20)).buffers == buffers


def test_or_more_elements_of_distinct_arrays() -> None:
    """Of 2^20 elements each: the first operation sees two arrays, each later one another."""
    assert cut(chain(8, MB), Switches(1000, 3)).buffers == 3  # each ends with its fourth array: 3 + 3 + 2
    assert cut(chain(8, MB), Switches(1000, 1)).buffers == 8
    assert cut(chain(8, MB // 4), Switches(1000, 3)).buffers == 1


def test_temporaries_stay_until_the_host_waits() -> None:
    """Twelve command buffers of one operation: the eleventh that is handed over makes the host wait."""
    assert cut(chain(8, MB), Switches(0, 1 << 20)).peak == 8 * 4 * MB
    assert cut(chain(40, MB), Switches(0, 1 << 20)).peak == 12 * 4 * MB


def test_borders_bound_what_is_in_memory() -> None:
    def run(x: mx.array) -> list[mx.array]:
        ends = []
        for _ in range(10):
            for _ in range(4):
                x = mx.sin(x)
            ends.append(x)
        return [x, *ends]

    graph = trace(run, [mx.zeros(MB)])
    keys = [array.key for array in graph.outputs[1:]]
    step = whole_step(graph, 0, 1, [])
    bounded = Step(step.graph, step.weights, step.cache, 1, {}, {}, tuple((key,) for key in keys))
    # The part that is queued, the one before it, and what that one began with.
    assert cut(bounded, SET).peak <= (4 + 4 + 1) * 4 * MB < cut(step, SET).peak


def test_the_ledger_holds_the_promises() -> None:
    """A token in 6 to 16 command buffers; a prefill within `workspace`, with MLX's cache of freed buffers."""
    rows = json.loads(LEDGER.read_text("utf-8"))["command_buffers"]  # test_ledger.py: they are today's
    found = {(one["step"], one["switches"]): one for one in rows if one["context"] == 4096}
    decode = found["decode", "set"]
    assert 6 <= decode["buffers"] <= 16 and found["decode", "MLX"]["buffers"] >= 86
    for step in ("prefill of 512", f"prefill of {512 * TOGETHER:,}, paged"):
        assert found[step, "set"]["peak"] + prefill_limit(FLASH) <= workspace(FLASH)
    assert decode["buffers"] == KERNELS.buffers
    assert found["prefill of 512", "set"]["buffers"] == KERNELS.chunk_buffers


@pytest.mark.parametrize("release", ["flash", "base", "pro"])
@pytest.mark.parametrize("context", [0, 4096 + 127, 1_048_575])
def test_a_token_of_every_release_takes_6_to_16(release: str, context: int) -> None:
    """After no token; closing rows of both kinds; at the end of the context."""
    config = parse_config(json.dumps(release_config(release, true_size=True)), release)  # type: ignore[arg-type]
    step = trace_ours(config, context=min(context, config.max_context - 1), rows=1, kernels=True)
    found = cut(step, SET)
    assert 6 <= found.buffers <= 16 and found.operations <= SET.operations + 8


def test_a_prefill_holds_two_layers_and_no_more() -> None:
    """Against the same chunk queued whole, and a chunk too short to be bounded."""
    config = true_config()
    whole = trace_ours(config, context=1536, rows=512, kernels=True)
    kept = whole.graph.outputs[: -sum(map(len, whole.borders))]
    without = replace(whole, graph=replace(whole.graph, outputs=kept), borders=())
    peak = cut(whole, SET).peak
    assert len(whole.borders) == 2 * config.layers
    assert peak <= 3 / config.layers * cut(without, SET).peak
    short = cut(trace_ours(config, context=4096, rows=31, kernels=True), SET)
    assert short.peak + prefill_limit(FLASH) <= workspace(FLASH)


@pytest.mark.long
def test_references_hold_it_too() -> None:
    for rows, buffers in ((1, REFERENCES.buffers), (512, REFERENCES.chunk_buffers)):
        found = cut(trace_ours(true_config(), context=4096 - rows // 512 * 512, rows=rows), SET)
        assert found.peak + prefill_limit(FLASH) <= workspace(FLASH) and found.buffers == buffers


@pytest.mark.parametrize("name", mlx_switches.SWITCHES)
def test_switches_are_set_before_mlx_and_the_users_win(name: str) -> None:
    code = f"import dsv4_mlx, os; print(os.environ[{name!r}])"
    for own in ("", "1"):
        environment = {k: v for k, v in os.environ.items() if k not in mlx_switches.SWITCHES}
        environment |= {name: own} if own else {}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == (own or str(mlx_switches.SWITCHES[name]))


@pytest.mark.parametrize("name", mlx_switches.SWITCHES)
@pytest.mark.parametrize("value", ["", "yes", "-1", "1.5", "9" * 5000, "\u0661"])
def test_nonsense_is_refused_by_name(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=name):
        mlx_switches.check()


def test_a_zero_bound_is_nonsense_and_a_zero_switch_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    mlx_switches.check()
    monkeypatch.setenv("MLX_MAX_OPS_PER_BUFFER", "0")
    with pytest.raises(UsageError, match="expected 1 to"):
        mlx_switches.check()
