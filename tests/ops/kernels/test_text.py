"""What was proven is what MLX compiles: the text of every kernel, as MLX writes it for its cases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import metal_proof as proof
import mlx.core as mx
import pytest
from metal_proof.arrays import dtype_name
from mlx.utils import tree_flatten
from ops.kernels.proven import machine_kernel

from dsv4_mlx.ops.kernels import ALL
from dsv4_mlx.ops.kernels.launch import Launch, bare, metal
from dsv4_mlx.ops.kernels.op import Case, KernelOp


def texts(op: KernelOp, case: Case) -> list[tuple[Launch, str]]:
    """Launches of a case with the source that MLX made of each. Tracing a call needs no Metal."""
    mx.eval([leaf for _, leaf in arrays((case.arguments, dict(case.options)))])
    launches: list[Launch] = []
    events: list[dict[str, Any]] = []

    def launcher(launch: Launch) -> Sequence[mx.array]:
        launches.append(launch)
        return metal(launch)

    def call(x: mx.array) -> list[mx.array]:
        result = op.call(launcher, *case.arguments, **case.options)
        return [x, *(leaf for _, leaf in arrays(result))]

    # MLX 0.32.4 can't export this one.
    with mock.patch.object(mx, "contiguous", lambda x, allow_col_major=False: x):
        mx.export_function(events.append, call, mx.zeros(1))
    sources = [
        str(event["arguments"][1])
        for event in events
        if event["type"] == "primitive" and event["name"] == "CustomKernel"
    ]
    return list(zip(launches, sources, strict=True))


def arrays(tree: Any) -> list[tuple[str, mx.array]]:
    pairs: Any = [("", tree)] if isinstance(tree, mx.array) else tree_flatten(tree)
    return [(name, leaf) for name, leaf in pairs if isinstance(leaf, mx.array)]


@pytest.mark.parametrize("op", ALL, ids=lambda op: op.name)
def test_mlx_writes_the_text_that_was_proven(op: KernelOp) -> None:
    seen = set()
    for case in op.cases():
        for launch, source in texts(op, case):
            types = [proof.ArrayType(dtype_name(array.dtype), array.shape) for array in launch.inputs]
            signature = machine_kernel(launch).signature(types, launch.dtypes, launch.template)
            assert bare(source.replace("custom_kernel_dsv4_", "custom_kernel_")) == bare(signature.text)
            seen.add(launch.kernel.name)
    assert seen


METAL = sorted((Path(__file__).parents[3] / "metal").rglob("*.[mh]*"))
INEXACT = re.compile(r"(?<![\w:])(?:sqrt|rsqrt|(?:exp|log)(?:2|10)?|pow|powr|tanh?|sinh?|cosh?)\(")


def test_bare_text_is_the_text_without_comments() -> None:
    assert bare("// a\n\n  x = 1;  // b\n#define Y \\\n  2\n") == "x = 1;\n#define Y \\\n2\n"


@pytest.mark.parametrize("path", METAL, ids=lambda path: path.name)
def test_inexact_functions_say_how_exact(path: Path) -> None:
    """What is neither `precise::` nor `fast::` is what the compiler's options say: in MLX's kernels, fast."""
    assert not INEXACT.findall(re.sub(r"//.*", "", path.read_text("utf-8")))
