"""What a Metal kernel is, one call of it, and who runs it.

A wrapper describes its calls as `Launch` values and hands them to a launcher it was given: `metal` on a Mac,
and wherever there is no Metal something that executes, counts or breaks them in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import mlx.core as mx

Template = tuple[tuple[str, int | bool | mx.Dtype], ...]

_INCLUDE = re.compile(r'^#include "([\w.]+)"\n', re.MULTILINE)
_COMMENT = re.compile(r"//.*")
_BODY = re.compile(r"^// body: (\w+)\n", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Kernel:
    """What `mx.fast.metal_kernel` is made from: `source` is the function's body, `header` goes before.

    There is one object for a kernel, and it is found by identity: its texts are long.
    `strided`: inputs come as they lie, and the body reads their strides. Otherwise an input with gaps is
    copied first.
    """

    name: str
    source: str
    header: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    strided: bool = False


@dataclass(frozen=True, eq=False)
class Launch:
    """One call. Grid and threadgroup are in threads. Outputs are written whole.

    `bytes_read`: distinct bytes read of an input, where a call doesn't read all of it.
    """

    kernel: Kernel
    inputs: tuple[mx.array, ...]
    grid: tuple[int, int, int]
    threadgroup: tuple[int, int, int]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[mx.Dtype, ...]
    template: Template = ()
    bytes_read: Mapping[str, int] = field(default_factory=dict)

    def loaded(self) -> dict[str, int]:
        """Distinct bytes read, by input."""
        pairs = zip(self.kernel.inputs, self.inputs, strict=True)
        return {name: self.bytes_read.get(name, array.nbytes) for name, array in pairs}

    def stored(self) -> dict[str, int]:
        """Bytes written, by output."""
        sizes = zip(self.kernel.outputs, self.shapes, self.dtypes, strict=True)
        return {name: size(shape) * dtype.size for name, shape, dtype in sizes}


Launcher = Callable[[Launch], Sequence[mx.array]]


def size(shape: Sequence[int]) -> int:
    """Elements of an array."""
    count = 1
    for extent in shape:
        count *= extent
    return count


def run(launcher: Launcher, launch: Launch) -> Sequence[mx.array]:
    """Outputs [shapes] of a launch; one without threads (no rows) has empty ones and is not launched."""
    if 0 in launch.grid:
        return [mx.zeros(shape, dtype) for shape, dtype in zip(launch.shapes, launch.dtypes, strict=True)]
    return launcher(launch)


def metal(launch: Launch) -> Sequence[mx.array]:
    """The launcher of a Mac: outputs [shapes]."""
    outputs: Sequence[mx.array] = _compiled(launch.kernel)(
        inputs=list(launch.inputs),
        template=list(launch.template),
        grid=launch.grid,
        threadgroup=launch.threadgroup,
        output_shapes=list(launch.shapes),
        output_dtypes=list(launch.dtypes),
    )
    return outputs


@cache
def _compiled(kernel: Kernel) -> Any:
    return mx.fast.metal_kernel(
        name=f"dsv4_{kernel.name}",
        input_names=list(kernel.inputs),
        output_names=list(kernel.outputs),
        source=bare(kernel.source),
        header=bare(kernel.header),
        ensure_row_contiguous=not kernel.strided,
    )


def bare(text: str) -> str:
    """Without comments and indentation, a third of it: MLX joins and hashes a kernel's text at every call."""
    lines = (_COMMENT.sub("", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line) + "\n"


@cache
def kernel(
    file: str, body: str, inputs: tuple[str, ...], outputs: tuple[str, ...], strided: bool = False
) -> Kernel:
    """The kernel whose body follows the line `// body: BODY` of metal/FILE.metal.

    What comes before the first body is the header of all of them; in it `#include "x.h"` is replaced by
    metal/common/x.h, because Metal has no path to look in at run time.
    """
    header, *parts = _BODY.split(_text(f"{file}.metal"))
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    if body not in bodies:
        raise ValueError(f"metal/{file}.metal has the bodies {sorted(bodies)}, expected one called {body!r}")
    name = file if body == file else f"{file}_{body}"
    return Kernel(name, bodies[body], _joined(header), inputs, outputs, strided)


def _joined(header: str, seen: set[str] | None = None) -> str:
    """`header` with each included file's text once, in the place where it is first asked for."""
    seen = set() if seen is None else seen

    def text(match: re.Match[str]) -> str:
        name = match.group(1)
        if name in seen:
            return ""
        seen.add(name)
        return _joined(_text(f"common/{name}"), seen)

    return _INCLUDE.sub(text, header)


def _text(name: str) -> str:
    return files("dsv4_mlx.metal").joinpath(name).read_text("utf-8")


@lru_cache(maxsize=512)
def uniforms(*values: int) -> mx.array:
    """uint32 [n], n >= 1: numbers that change from call to call, which no template argument may carry."""
    return mx.array(values, mx.uint32)


@cache
def constants(*values: float) -> mx.array:
    """float32 [n], n >= 1: the model's constants, which are too few to change and no integers."""
    return mx.array(values, mx.float32)
