"""Runs a Metal kernel on the CPU: `run(kernel, ...)` with the arguments `mx.fast.metal_kernel` takes."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from metal_proof.arrays import Array, BFloat16, array_dtype, dtype_name, from_storage, storage, storage_type
from metal_proof.build import PLAIN, Library, Numerics, kernel_library
from metal_proof.findings import Finding
from metal_proof.launch import Call
from metal_proof.rewrite import to_cpp
from metal_proof.signature import MAX_BUFFERS, ArrayType, Signature, Template, generate

MAX_THREADS = 1024


@dataclass(frozen=True)
class Kernel:
    """What one would give `mx.fast.metal_kernel`; `source` is the function's body."""

    name: str
    source: str
    header: str = ""
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    atomic_outputs: bool = False

    def __post_init__(self) -> None:
        # Hashable, so that a compiled kernel is found again by its Kernel.
        object.__setattr__(self, "input_names", tuple(self.input_names))
        object.__setattr__(self, "output_names", tuple(self.output_names))

    def signature(
        self, inputs: Sequence[ArrayType], output_dtypes: Sequence[object], template: Template = ()
    ) -> Signature:
        """The text MLX would compile for inputs of these types and shapes."""
        return generate(
            self.name,
            self.source,
            self.header,
            self.input_names,
            self.output_names,
            inputs,
            [dtype_name(dtype) for dtype in output_dtypes],
            template,
            self.atomic_outputs,
        )


@dataclass(frozen=True)
class Result:
    """What a run gave. The byte counts are of distinct bytes, by buffer, and empty without `check`."""

    outputs: list[Array]
    findings: list[Finding]
    loaded_bytes: dict[str, int] = field(default_factory=dict)
    stored_bytes: dict[str, int] = field(default_factory=dict)
    unwritten_bytes: dict[str, int] = field(default_factory=dict)
    threadgroup_bytes: int = 0
    partial_collectives: int = 0
    differs: tuple[str, ...] = ()
    seconds: float = 0.0

    def values(self, index: int = 0) -> npt.NDArray[Any]:
        """One output as numbers numpy can compute with: bfloat16 comes as float32."""
        output = self.outputs[index]
        return output.to_float32() if isinstance(output, BFloat16) else output

    def raise_findings(self) -> Result:
        """For tests: fails with everything that was found."""
        if self.findings:
            raise AssertionError("\n".join(map(str, self.findings)))
        return self


def array_types(inputs: Sequence[Array]) -> list[ArrayType]:
    return [ArrayType(array_dtype(array), tuple(array.shape)) for array in inputs]


def _three(values: Sequence[int], name: str) -> tuple[int, int, int]:
    if len(values) != 3 or min(values) < 1:
        raise ValueError(f"{name} is {tuple(values)}, expected three numbers of at least 1")
    return (int(values[0]), int(values[1]), int(values[2]))


def _clip(threadgroup: Sequence[int], grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """MLX clips the threadgroup to the grid."""
    asked = _three(threadgroup, "threadgroup")
    return (min(asked[0], grid[0]), min(asked[1], grid[1]), min(asked[2], grid[2]))


def _limits(signature: Signature, threadgroup: tuple[int, int, int]) -> list[Finding]:
    """What Metal refuses before it runs anything."""
    found = []
    threads = math.prod(threadgroup)
    if threads > MAX_THREADS:
        text = f"threadgroup {threadgroup} has {threads} threads, Metal allows {MAX_THREADS}; make it smaller"
        found.append(Finding("too-many-threads", text, "call"))
    if len(signature.arguments) > MAX_BUFFERS:
        text = f"the kernel takes {len(signature.arguments)} buffers, Metal allows {MAX_BUFFERS}; join some"
        found.append(Finding("too-many-buffers", text, "call"))
    return found


@functools.lru_cache(maxsize=4096)
def _signature(
    kernel: Kernel, inputs: tuple[ArrayType, ...], dtypes: tuple[str, ...], template: tuple[Any, ...]
) -> Signature:
    return kernel.signature(inputs, dtypes, template)


@functools.lru_cache(maxsize=4096)
def _compiled(signature: Signature, check: bool, numerics: Numerics) -> Library:
    return kernel_library(to_cpp(signature), check, replace(numerics, flush=False))


def run(
    kernel: Kernel,
    inputs: Sequence[Array] = (),
    *,
    grid: Sequence[int],
    threadgroup: Sequence[int],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[object],
    template: Template = (),
    init_value: float | None = None,
    ensure_row_contiguous: bool = True,
    schedules: int = 3,
    check: bool = True,
    seed: int = 0,
    access_limit: int = 1 << 32,
    numerics: Numerics = PLAIN,
) -> Result:
    """Launches the kernel under `schedules` schedules: the first runs threads in order, the others at random.

    With `check`, every access is judged before it happens; the launch stops at the first finding that makes
    going on pointless, and later schedules are not run. Without, the kernel runs on the arrays themselves:
    only for launches that a check has passed.
    """
    start = time.perf_counter()
    dtypes = tuple(dtype_name(dtype) for dtype in output_dtypes)
    types = tuple(array_types(inputs))
    signature = _signature(kernel, types, dtypes, tuple((name, value) for name, value in template))
    outputs = [
        np.empty(tuple(shape), dtype=storage_type(dtype))
        for shape, dtype in zip(output_shapes, dtypes, strict=True)
    ]
    whole = _three(grid, "grid")
    group = _clip(threadgroup, whole)
    refused = _limits(signature, group)
    if refused:
        return Result([from_storage(a, d) for a, d in zip(outputs, dtypes, strict=True)], refused)

    arrays = [*(storage(array, ensure_row_contiguous) for array in inputs), *outputs]
    named = dict(zip((*kernel.input_names, *kernel.output_names), arrays, strict=True))
    call = Call(
        signature=signature,
        library=_compiled(signature, check, numerics),
        named=named,
        output_dtypes=dict(zip(kernel.output_names, dtypes, strict=True)),
        grid=whole,
        threadgroup=group,
        init_value=init_value,
        check=check,
        access_limit=access_limit,
        flush=numerics.flush,
    )
    return _launch(kernel, call, schedules, seed, start)


def _launch(kernel: Kernel, call: Call, schedules: int, seed: int, start: float) -> Result:
    if schedules < 1:
        raise ValueError(f"schedules is {schedules}, expected at least 1")
    first: list[npt.NDArray[Any]] | None = None
    differs: set[str] = set()
    for schedule in range(schedules):
        # Seed 0 is the runtime's word for "in order".
        outcome = call.once(0 if schedule == 0 else (seed << 20) + schedule)
        if outcome.raw:
            break
        if first is None:
            first = [array.copy() for array in call.outputs] if schedules > 1 else call.outputs
        else:
            pairs = zip(kernel.output_names, first, call.outputs, strict=True)
            differs |= {name for name, before, now in pairs if before.tobytes() != now.tobytes()}
    rows = outcome.buffers if call.check else {}
    loaded = [name for name in rows if name in kernel.input_names or name in kernel.output_names]
    stored = [name for name in rows if name in kernel.output_names]
    kept = call.outputs if first is None else first
    return Result(
        outputs=[from_storage(a, d) for a, d in zip(kept, call.output_dtypes.values(), strict=True)],
        findings=call.describe(outcome.raw),
        loaded_bytes={name: rows[name].loaded for name in loaded},
        stored_bytes={name: rows[name].stored for name in stored},
        unwritten_bytes={name: rows[name].unwritten for name in stored},
        threadgroup_bytes=outcome.threadgroup_bytes,
        partial_collectives=outcome.partial_collectives,
        differs=tuple(sorted(differs)),
        seconds=time.perf_counter() - start,
    )
