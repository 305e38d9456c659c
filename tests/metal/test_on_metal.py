"""Every kernel on this machine's own GPU. Skipped without Metal; `--fail-on-skip` makes a skip a failure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import metal
from dsv4_mlx.ops.kernels.op import Case, KernelOp, disagreement
from dsv4_mlx.ops.table import REFERENCE

CASES = [pytest.param(op, case, id=f"{op.name}: {case.name}") for op in ALL for case in op.cases()]


@pytest.mark.skipif(not mx.metal.is_available(), reason="no Metal on this machine")
@pytest.mark.parametrize(("op", "case"), CASES)
def test_case(op: KernelOp, case: Case) -> None:
    """The kernel's values are the reference's."""
    found = op.call(metal, *case.arguments, **case.options)
    expected = getattr(REFERENCE, op.name)(*case.arguments, **case.options)
    assert disagreement(found, expected, case.tolerance) is None


def test_a_skip_can_be_made_a_failure() -> None:
    """What the workflow rests on: a run on a machine without Metal must not be green there."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--fail-on-skip"]
    command += ["-k", "test_case", str(Path(__file__))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = 0 if mx.metal.is_available() else 1
    assert done.returncode == expected, done.stdout
    assert expected == 0 or "--fail-on-skip was given" in done.stdout
