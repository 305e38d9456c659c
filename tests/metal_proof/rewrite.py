"""The few changes that make MLX's generated Metal text C++: nothing here moves a line.

Address-space keywords are macros (include/msl.h), with one exception: a `threadgroup` *variable* needs
storage shared by the fibres of a threadgroup, so its declaration becomes a reference into the runtime's
arena.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from metal_proof.signature import ATTRIBUTES, Argument, Signature

# How the runtime's Ids answer each attribute; the rest have a field of the same name.
_DERIVED: dict[str, str] = {
    "dispatch_quadgroups_per_threadgroup": "(proof::volume(ids->dispatch_threads_per_threadgroup) + 3) / 4",
    "dispatch_simdgroups_per_threadgroup": "(proof::volume(ids->dispatch_threads_per_threadgroup) + 31) / 32",
    "grid_origin": "metal::uint3(0)",
    "grid_size": "proof::triple(ids->threads_per_grid)",
    "quadgroup_index_in_threadgroup": "ids->thread_index_in_threadgroup / 4",
    "quadgroups_per_threadgroup": "(proof::volume(ids->threads_per_threadgroup) + 3) / 4",
    "simdgroup_index_in_threadgroup": "ids->thread_index_in_threadgroup / 32",
    "simdgroups_per_threadgroup": "(proof::volume(ids->threads_per_threadgroup) + 31) / 32",
    "thread_execution_width": "32",
    "thread_index_in_quadgroup": "ids->thread_index_in_threadgroup % 4",
    "thread_index_in_simdgroup": "ids->thread_index_in_threadgroup % 32",
    "thread_index_in_threadgroup": "ids->thread_index_in_threadgroup",
    "threads_per_simdgroup": "32",
}

_HIDDEN = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"', re.DOTALL)
_HOST_NAME = re.compile(r"^template \[\[host_name\(.*$", re.MULTILINE)
_DECLARATION = re.compile(r"(?<=[;{}])(\s*)\bthreadgroup\b([^;]*);")


def blank(text: str) -> str:
    """The text with comments and strings replaced by spaces, so that positions and lines stay."""
    return _HIDDEN.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


@dataclass(frozen=True)
class Variable:
    """One variable of a `threadgroup` declaration: `type name extents`."""

    type: str
    name: str
    extents: str


def _split(text: str) -> list[str]:
    """Splits at commas outside any bracket."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "<[(") - (character in ">])")
        if character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def threadgroup_variables(declaration: str) -> list[Variable] | None:
    """What lies between `threadgroup` and `;`, or None if that declares a pointer or a reference."""
    bare = re.sub(r"\[[^\]]*\]", "", declaration)
    if re.search(r"[*&=(]", bare):
        return None
    first, *others = _split(declaration)
    match = re.fullmatch(r"\s*(.*?)\s*\b(\w+)\s*((?:\[[^\]]*\]\s*)*)", first, re.DOTALL)
    if match is None or not match.group(1):
        return None
    variables = [Variable(match.group(1), match.group(2), match.group(3).strip())]
    for other in others:
        name = re.fullmatch(r"\s*(\w+)\s*((?:\[[^\]]*\]\s*)*)", other, re.DOTALL)
        if name is None:
            return None
        variables.append(Variable(match.group(1), name.group(1), name.group(2).strip()))
    return variables


# As many as the runtime has room for (runtime/machine.h).
_MAX_VARIABLES = 64


def rewrite_threadgroup(text: str, replacement: str) -> str:
    """Puts `replacement` for every threadgroup variable; it may name {type}, {name}, {extents} and {id}."""
    pieces, at, number = [], 0, 0
    for match in _DECLARATION.finditer(blank(text)):
        declaration = text[match.start(2) : match.end(2)]
        variables = threadgroup_variables(blank(declaration))
        if variables is None:
            continue
        pieces.append(text[at : match.end(1)])
        for variable in variables:
            pieces.append(
                replacement.format(
                    type=variable.type, name=variable.name, extents=variable.extents, id=number
                ).replace("\n", " ")
            )
            number += 1
        pieces.append("\n" * text[match.end(1) : match.end()].count("\n"))
        at = match.end()
    if number > _MAX_VARIABLES:
        raise ValueError(
            f"{number} threadgroup variables, expected at most {_MAX_VARIABLES}; put them in arrays"
        )
    return "".join([*pieces, text[at:]])


def _argument(index: int, argument: Argument) -> str:
    const = "" if argument.role == "output" else "const "
    pointer = f"static_cast<{const}{argument.metal_type}*>(buffers[{index}])"
    return f"*{pointer}" if argument.scalar else pointer


def _attribute(name: str) -> str:
    if name in _DERIVED:
        return _DERIVED[name]
    return f"proof::triple(ids->{name})" if ATTRIBUTES[name] == "uint3" else f"ids->{name}"


def to_cpp(signature: Signature) -> str:
    """The generated text as C++, followed by the function through which the runtime starts a thread."""
    text = _HOST_NAME.sub("", signature.text)
    text = rewrite_threadgroup(
        text,
        "typedef {type} proof_type_{id}{extents}; "
        'auto& {name} = proof::threadgroup_variable<proof_type_{id}>({id}, "{name}");',
    )
    arguments = [_argument(index, argument) for index, argument in enumerate(signature.arguments)]
    arguments += [_attribute(name) for name in signature.attributes]
    return (
        f"{text}\n"
        'extern "C" void proof_thread(void* const* buffers, const proof::Ids* ids) {\n'
        f"  {signature.instance}({', '.join(arguments)});\n"
        "}\n"
    )
