"""Every kernel against its reference, on the proof machine: values, accesses, address spaces, bytes."""

from __future__ import annotations

import pytest
from kernels.proven import Proven, check_bytes, parse_findings

from dsv4_mlx.kernels import ALL
from dsv4_mlx.kernels.launch import Launch
from dsv4_mlx.kernels.op import Case, KernelOp, disagreement
from dsv4_mlx.ops import REFERENCE

OPS = {op.name: op for op in ALL}
CASES = [pytest.param(op, case, id=f"{op.name}: {case.name}") for op in ALL for case in op.cases()]


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
