"""The Metal source that `mx.fast.metal_kernel` would compile, character for character.

MLX writes the function's signature itself, from the shapes and types of the call. The rules here are
held to MLX's own output by a test, because everything the emulator says about a kernel is said
about this text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from metal_proof.arrays import dtype_name, is_dtype, metal_type

# Inputs with fewer elements than this arrive in the constant address space.
CONSTANT_BELOW = 8

# Metal's limit on buffer arguments of one kernel.
MAX_BUFFERS = 31

# In the order in which MLX appends them; a kernel gets those whose name occurs in its source.
ATTRIBUTES: dict[str, str] = {
    "dispatch_quadgroups_per_threadgroup": "uint",
    "dispatch_simdgroups_per_threadgroup": "uint",
    "dispatch_threads_per_threadgroup": "uint3",
    "grid_origin": "uint3",
    "grid_size": "uint3",
    "quadgroup_index_in_threadgroup": "uint",
    "quadgroups_per_threadgroup": "uint",
    "simdgroup_index_in_threadgroup": "uint",
    "simdgroups_per_threadgroup": "uint",
    "thread_execution_width": "uint",
    "thread_index_in_quadgroup": "uint",
    "thread_index_in_simdgroup": "uint",
    "thread_index_in_threadgroup": "uint",
    "thread_position_in_grid": "uint3",
    "thread_position_in_threadgroup": "uint3",
    "threadgroup_position_in_grid": "uint3",
    "threadgroups_per_grid": "uint3",
    "threads_per_grid": "uint3",
    "threads_per_simdgroup": "uint",
    "threads_per_threadgroup": "uint3",
}

TemplateValue = object  # bool, int or an element type
Template = Sequence[tuple[str, TemplateValue]]


@dataclass(frozen=True)
class Argument:
    """One buffer of the kernel. `role` is input, output, shape, strides or ndim; `owner` the array's name."""

    name: str
    role: str
    owner: str
    metal_type: str
    scalar: bool


@dataclass(frozen=True)
class Signature:
    text: str
    function: str
    instance: str
    arguments: tuple[Argument, ...]
    attributes: tuple[str, ...]
    header_lines: int
    body_line: int


@dataclass(frozen=True)
class ArrayType:
    """What the signature depends on: the element type and the shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count


def _template_text(value: TemplateValue) -> tuple[str, str]:
    """The parameter's kind and the argument's spelling."""
    if isinstance(value, bool):
        return "bool", str(int(value))
    if isinstance(value, int):
        return "int", str(value)
    if is_dtype(value):
        return "typename", metal_type(dtype_name(value))
    raise TypeError(f"template value {value!r}: expected bool, int or an element type such as mx.float16")


def _input_arguments(name: str, array: ArrayType, source: str) -> list[tuple[Argument, str]]:
    kind = metal_type(array.dtype)
    space = "constant" if array.size < CONSTANT_BELOW else "device"
    scalar = not array.shape
    rows = [
        (Argument(name, "input", name, kind, scalar), f"const {space} {kind}{'&' if scalar else '*'} {name}")
    ]
    if scalar:
        return rows
    for role, type_text, mark in (("shape", "int", "*"), ("strides", "int64_t", "*"), ("ndim", "int", "&")):
        extra = f"{name}_{role}"
        if extra in source:
            argument = Argument(extra, role, name, type_text, mark == "&")
            rows.append((argument, f"const constant {type_text}{mark} {extra}"))
    return rows


def _function_name(
    name: str, values: Sequence[str], inputs: Sequence[ArrayType], outputs: Sequence[str]
) -> str:
    text = f"custom_kernel_{name}"
    if values:
        text += "_" + "".join("_" + re.sub(r"\W", "_", value) for value in values)
    for array in inputs:
        text += "_" + metal_type(array.dtype)
        if not array.shape:
            text += "s"
        elif array.size < CONSTANT_BELOW:
            text += "c"
    for dtype in outputs:
        text += "_" + metal_type(dtype)
    return text


def generate(
    name: str,
    source: str,
    header: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    inputs: Sequence[ArrayType],
    output_dtypes: Sequence[str],
    template: Template = (),
    atomic_outputs: bool = False,
) -> Signature:
    """The whole text MLX compiles for one call, without the utilities it puts in front."""
    template_parts = [(parameter, *_template_text(value)) for parameter, value in template]
    values = [value for _, _, value in template_parts]
    function = _function_name(name, values, inputs, output_dtypes)

    rows: list[tuple[Argument, str]] = []
    for input_name, array in zip(input_names, inputs, strict=True):
        rows += _input_arguments(input_name, array, source)
    for output_name, dtype in zip(output_names, output_dtypes, strict=True):
        kind = metal_type(dtype)
        pointee = f"atomic<{kind}>" if atomic_outputs else kind
        rows.append(
            (Argument(output_name, "output", output_name, pointee, False), f"device {pointee}* {output_name}")
        )
    attributes = tuple(attribute for attribute in ATTRIBUTES if attribute in source)

    parameters = [f"  {text} [[buffer({index})]]" for index, (_, text) in enumerate(rows)]
    parameters += [f"  {ATTRIBUTES[item]} {item} [[{item}]]" for item in attributes]
    ends = [",\n"] * (len(parameters) - 1) + [") {\n"]
    if not attributes:
        # MLX 0.32.4 tells the last output by counting arrays, not buffers: with shapes among the inputs,
        # several outputs and no attribute, its text is not Metal. This says the same, and fails to compile.
        arrays = len(input_names) + len(output_names)
        for index in range(len(rows) - len(output_names), len(rows)):
            ends[index] = ",\n" if index < arrays - 1 else ") {\n"
    lines = header
    if template_parts:
        lines += f"template <{', '.join(f'{kind} {parameter}' for parameter, kind, _ in template_parts)}>\n"
    lines += f"[[kernel]] void {function}(\n"
    lines += "".join(parameter + end for parameter, end in zip(parameters, ends, strict=True))
    body_line = lines.count("\n") + 1
    text = lines + source + "\n}\n"
    instance = f"{function}<{', '.join(values)}>" if values else function
    if values:
        text += f'\ntemplate [[host_name("{function}")]] [[kernel]] decltype({instance}) {instance};\n'
    arguments = tuple(argument for argument, _ in rows)
    return Signature(text, function, instance, arguments, attributes, header.count("\n"), body_line)
