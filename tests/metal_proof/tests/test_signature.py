"""The generated text must be MLX's own, or everything else here is about another kernel."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from metal_proof import Kernel, from_mlx
from metal_proof.machine import array_types
from metal_proof.signature import ATTRIBUTES

DTYPES = [
    mx.bool_,
    mx.uint8,
    mx.uint16,
    mx.uint32,
    mx.uint64,
    mx.int8,
    mx.int16,
    mx.int32,
    mx.int64,
    mx.float16,
    mx.bfloat16,
    mx.float32,
    mx.complex64,
]


def mlx_text(
    capfd: pytest.CaptureFixture[str],
    folder: Path,
    kernel: Kernel,
    arrays: list[mx.array],
    dtypes: list[Any],
    template: Any,
) -> str:
    """What MLX generates: it prints the text while a call is traced, which needs no GPU."""

    def call(*inputs: mx.array) -> Any:
        made: Any = mx.fast.metal_kernel(
            name=kernel.name,
            input_names=list(kernel.input_names),
            output_names=list(kernel.output_names),
            source=kernel.source,
            header=kernel.header,
            atomic_outputs=kernel.atomic_outputs,
        )
        return made(
            inputs=list(inputs) or [],
            template=template,
            grid=(32, 1, 1),
            threadgroup=(32, 1, 1),
            output_shapes=[(8,)] * len(dtypes),
            output_dtypes=dtypes,
            verbose=True,
            stream=mx.gpu,
        )

    capfd.readouterr()
    mx.export_function(str(folder / "kernel.mlxfn"), call, *arrays)
    printed = capfd.readouterr().out
    return printed.split("```\n", 1)[1].rsplit("\n```", 1)[0]


CASES = {
    "plain": Kernel("k", "y[0] = x[0];", "", ["x"], ["y"]),
    "header without newline": Kernel("k", "y[0] = x[0];", "int q;", ["x"], ["y"]),
    "header with newline": Kernel("k", "y[0] = x[0];", "// h\n#define A 1\n", ["x"], ["y"]),
    "shape": Kernel("k", "y[0] = x_shape[0];", "", ["x"], ["y"]),
    "strides and ndim": Kernel("k", "y[0] = x_strides[0] + x_ndim;", "", ["x"], ["y"]),
    "shape named in the header only": Kernel("k", "y[0] = 1;", "// x_shape\n", ["x"], ["y"]),
    "atomic": Kernel("k", "y[0] = 1;", "", ["x"], ["y"], atomic_outputs=True),
    "odd name": Kernel("a_b2", "\n  y[0] = 1;\n", "", ["x"], ["y"]),
    "every attribute": Kernel("k", " ".join(ATTRIBUTES), "", ["x"], ["y"]),
}
TEMPLATES: list[Any] = [
    [],
    [("T", mx.float32)],
    [("T", mx.bfloat16), ("N", -4), ("B", True), ("C", False), ("U", mx.complex64), ("M", 17)],
]


@pytest.mark.parametrize("name", CASES)
def test_text_is_mlx_own(name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kernel = CASES[name]
    for shape, template in itertools.product([(), (7,), (8,), (2, 3), (0, 2), (4, 5, 6)], TEMPLATES):
        array = mx.zeros(shape, dtype=mx.float16)
        expected = mlx_text(capfd, tmp_path, kernel, [array], [mx.float32], template)
        made = kernel.signature(array_types([from_mlx(array)]), [mx.float32], template)
        assert made.text == expected


def test_text_is_mlx_own_for_random_calls(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    choose = random.Random(7)
    for _ in range(60):
        count = choose.randint(1, 5)
        names = [f"in{i}" for i in range(count)]
        outputs = [f"out{i}" for i in range(choose.randint(1, 3))]
        words = [f"{n}_{part}" for n in names for part in ("shape", "strides", "ndim")] + list(ATTRIBUTES)
        source = "\n".join(choose.sample(words, choose.randint(0, 12)))
        kernel = Kernel("mixed", source, "", names, outputs, atomic_outputs=choose.random() < 0.2)
        arrays = [
            mx.zeros([choose.randint(1, 5) for _ in range(choose.randint(0, 3))], dtype=choose.choice(DTYPES))
            for _ in names
        ]
        dtypes = [choose.choice(DTYPES) for _ in outputs]
        template = [
            (f"P{i}", choose.choice([True, False, -3, 0, 12, *DTYPES])) for i in range(choose.randint(0, 3))
        ]
        expected = mlx_text(capfd, tmp_path, kernel, arrays, dtypes, template)
        made = kernel.signature(array_types([from_mlx(a) for a in arrays]), dtypes, template)
        assert made.text.splitlines() == expected.splitlines()


def test_unknown_types_are_refused() -> None:
    kernel = CASES["plain"]
    with pytest.raises(ValueError, match="float64"):
        kernel.signature(array_types([np.zeros(8)]), ["float32"])
    with pytest.raises(TypeError, match="template value"):
        kernel.signature([], ["float32"], [("T", 1.5)])
