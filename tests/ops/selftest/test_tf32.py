"""MLX's switch for float32 products: set in time, kept where the user set it, part of every verdict's key.

What it does to kernels on an M5 is in tests/ops/kernels/test_kernels.py, which has compiled them.
"""

from __future__ import annotations

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from ops.selftest.test_choose import TESTS

VARIABLE = "MLX_ENABLE_TF32"


def python(code: str, setting: str | None) -> subprocess.CompletedProcess[str]:
    """A program whose user has given the switch this value, or none."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join((str(TESTS), os.environ.get("PYTHONPATH", "")))
    if setting is not None:
        environment[VARIABLE] = setting
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize(("setting", "kept"), [(None, "0"), ("1", "1"), ("0", "0"), ("", "")])
def test_what_the_user_set_is_kept(setting: str | None, kept: str) -> None:
    code = f"import dsv4_mlx, os; print(os.environ[{VARIABLE!r}])"
    assert python(code, setting).stdout == f"{kept}\n"


@pytest.mark.parametrize("metal", [True, False])
@pytest.mark.parametrize("setting", [None, "0", "1"])
@pytest.mark.parametrize("first", ["mlx.core", "dsv4_mlx"])
def test_a_program_that_used_mlx_before_is_warned(first: str, setting: str | None, metal: bool) -> None:
    """Where it matters, and where nobody has said anything in time."""
    code = (
        f"import {first}\nimport mlx.core as mx\nmx.metal.is_available = lambda: {metal}\n"
        "from dsv4_mlx.engine.engine import prepare\nprepare('off')\nprepare('off')"
    )
    said = python(code, setting).stderr
    late = first == "mlx.core" and setting is None and metal
    assert said.count("Dsv4Warning") == late
    assert ("import dsv4_mlx first" in said) == late


def test_the_stand_in_rounds_to_ten_bits() -> None:
    code = (
        "import ops.selftest.m5 as m5, mlx.core as mx, numpy as np\n"
        "x = mx.array([1 + 2**-10, 1 + 2**-11, 1 + 3 * 2**-11, -3.0, float('inf'), 0.0])\n"
        "print(*np.array(m5.tf32(x)).tolist())\n"
        "a = mx.full((2, 1), 1 + 2**-12)\n"
        "print((a @ mx.ones((1, 2))).max().item(), (a @ mx.ones((1, 1))).max().item() > 1)\n"
        "with mx.stream(mx.cpu):\n    print((a @ mx.ones((1, 2))).max().item() > 1)"
    )
    rounded, products, on_the_cpu = python(code, "1").stdout.splitlines()
    assert [float(x) for x in rounded.split()] == [1 + 2**-10, 1, 1 + 2**-9, -3, np.inf, 0]
    assert products == "1.0 True"  # one column is a product of vectors
    assert on_the_cpu == "True"  # the rounding is the GPU's
    assert mx.matmul.__module__ != "ops.selftest.m5"  # and this process computes as ever
