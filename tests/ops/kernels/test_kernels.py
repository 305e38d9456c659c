"""Every kernel against its reference, on the emulator: values, accesses, address spaces, bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import metal_proof as proof
import mlx.core as mx
import pytest
from mlx.utils import tree_map
from ops.kernels.proven import Proven, check_bytes, parse_findings
from ops.kernels.short import is_short
from ops.selftest.test_tf32 import python

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch
from dsv4_mlx.ops.kernels.op import Case, KernelOp, disagreement
from dsv4_mlx.ops.table import REFERENCE

OPS = {op.name: op for op in ALL}
JUDGE = """
import json
from dsv4_mlx.ops.selftest import supervisor
from dsv4_mlx.ops.selftest.verdicts import CheckLimits, Metal
from ops.selftest.scripted import SMALL
metal = Metal("ops.selftest.m5:launch", "", "", "", shape=SMALL)
found = supervisor.check(metal, KERNELS, CheckLimits(300.0, 1e9))
print(json.dumps({v.kernel: v.outcome for v in found}))
"""
CASES = [pytest.param(op, case, id=f"{op.name}: {case.name}") for op in ALL for case in op.cases()]

MODES = {
    "functions": proof.Numerics(functions=True),
    "contract": proof.Numerics(contract=True),
    "flush": proof.Numerics(flush=True),
    "all": proof.Numerics(functions=True, contract=True, flush=True),
}


@pytest.fixture(scope="module")
def launches() -> dict[str, list[Launch]]:
    """Launches of each kernel that cases have made, for the tests that come after them."""
    return {}


@pytest.mark.parametrize(("op", "case"), CASES)
def test_case(op: KernelOp, case: Case, launches: dict[str, list[Launch]]) -> None:
    """The reference's values; no finding under three schedules; what Metal accepts; bytes as told."""
    machine = Proven()
    found = op.call(machine, *case.arguments, **case.options)
    expected = getattr(REFERENCE, op.name)(*case.arguments, **case.options)
    assert disagreement(found, expected, case.tolerance) is None
    assert op.refuses(*case.arguments, **case.options) is None
    for launch, result in zip(machine.launches, machine.results, strict=True):
        assert parse_findings(launch) == []
        check_bytes(launch, result)
        launches.setdefault(launch.kernel.name, []).append(launch)


def in_modes() -> Iterator[Any]:
    """Every case in every mode; in a short run some cases in all modes at once."""
    for op in ALL:
        for case in op.cases():
            for mode in MODES:
                short = mode == "all" and is_short(op.name, case.name)
                marks = () if short else pytest.mark.long
                yield pytest.param(op, case, mode, id=f"{op.name}: {case.name}: {mode}", marks=marks)


@cache
def flushing_stream() -> mx.Stream:
    """Its thread takes over, when it starts, how this one treats subnormal numbers."""
    with proof.flushed():
        stream = mx.new_stream(mx.cpu)
        with mx.stream(stream):
            assert (mx.array([2e-38]) * mx.array([0.25])).item() == 0
    return stream


@pytest.mark.parametrize(("op", "case", "mode"), list(in_modes()))
def test_case_with_a_gpus_numerics(op: KernelOp, case: Case, mode: str) -> None:
    """Where a GPU flushes subnormal numbers, its reference does too, but not in the same order."""
    numerics = MODES[mode]
    found = op.call(Proven(check=False, numerics=numerics), *case.arguments, **case.options)
    with mx.stream(flushing_stream() if numerics.flush else mx.default_stream(mx.cpu)):
        expected = getattr(REFERENCE, op.name)(*case.arguments, **case.options)
        if numerics.flush:
            found = tree_map(without_flushed, found, expected)
        assert disagreement(found, expected, case.tolerance) is None


def without_flushed(found: mx.array | None, expected: mx.array | None) -> mx.array | None:
    """`found` but for differences of at most four times the smallest normal number: flushed terms."""
    if found is None or expected is None or not mx.issubdtype(found.dtype, mx.floating):
        return found
    near = mx.abs(found - expected) <= mx.array(2.0**-124, found.dtype)
    return mx.where(near, expected, found)


@pytest.mark.parametrize(
    ("setting", "kernels"),
    [
        (None, ["hc_post", "project", "route_hashed", "latents"]),
        pytest.param(None, [*OPS], marks=pytest.mark.long),
        ("1", ["hc_post", "project", "attend"]),
        pytest.param("1", [*OPS], marks=pytest.mark.long),
    ],
)
def test_no_kernel_is_refused_on_an_m5(setting: str | None, kernels: list[str]) -> None:
    """Whether its GPU's products keep 10 bits or all: kernels are held against products of the CPU."""
    found = json.loads(python(JUDGE.replace("KERNELS", repr(kernels)), setting).stdout)
    assert found == dict.fromkeys(kernels, "works")
    assert len(OPS) == 14
