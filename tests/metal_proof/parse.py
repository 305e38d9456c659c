"""Parses a kernel with real address spaces, and refuses what Metal lacks.

The execution pass has one address space; Metal has four, and does not compile a pointer that says none. Here
clang's "C++ for OpenCL" stands in: its address spaces follow the same rules, and what it is laxer about (an
unqualified pointer, a lambda, recursion) is looked for in the syntax tree.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import clang.cindex as clang
from clang.cindex import CursorKind, TypeKind

from metal_proof.arrays import Array
from metal_proof.build import cache_folder
from metal_proof.findings import Finding, place_in
from metal_proof.machine import Kernel, array_types
from metal_proof.rewrite import _HOST_NAME, rewrite_threadgroup
from metal_proof.signature import ArrayType, Signature, Template

_INCLUDE = Path(__file__).resolve().parent / "include" / "address_space"
_SPACES = ("__global", "__local", "__constant", "__private")
_FLAGS = [
    "-x",
    "cl",
    "-cl-std=clc++2021",
    "-cl-no-stdinc",
    "-target",
    "x86_64-unknown-linux-gnu",
    "-Xclang",
    "-cl-ext=+all,-cl_khr_fp64,-__opencl_c_fp64",
    "-Wuninitialized",
    "-Wsometimes-uninitialized",
    "-Wreturn-type",
    "-Warray-bounds",
    "-ferror-limit=20",
    "-include",
    "msl.h",
    f"-I{_INCLUDE}",
]
_WARNINGS = ("-Wuninitialized", "-Wsometimes-uninitialized", "-Wreturn-type", "-Warray-bounds")

# Metal converts between its two 16-bit floats when asked to; clang refuses.
_NOT_AN_ERROR = re.compile(r"cast from .*(?:half|bfloat).* to .*(?:half|bfloat).* is not allowed")

_FORBIDDEN = {
    CursorKind.LAMBDA_EXPR: "Metal before 3.2 has no lambda; use a function",
    CursorKind.GOTO_STMT: "Metal has no goto",
    CursorKind.CXX_TRY_STMT: "Metal has no exceptions",
    CursorKind.CXX_THROW_EXPR: "Metal has no exceptions",
    CursorKind.CXX_NEW_EXPR: "Metal has no new",
    CursorKind.CXX_DELETE_EXPR: "Metal has no delete",
    CursorKind.CXX_DYNAMIC_CAST_EXPR: "Metal has no run-time types",
    CursorKind.CXX_TYPEID_EXPR: "Metal has no run-time types",
    CursorKind.ASM_STMT: "Metal has no assembly",
}
_TYPED = {
    CursorKind.VAR_DECL,
    CursorKind.PARM_DECL,
    CursorKind.FIELD_DECL,
    CursorKind.CSTYLE_CAST_EXPR,
    CursorKind.CXX_REINTERPRET_CAST_EXPR,
    CursorKind.CXX_STATIC_CAST_EXPR,
    CursorKind.CXX_FUNCTIONAL_CAST_EXPR,
}
_FUNCTIONS = {CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE, CursorKind.CXX_METHOD}
_SCOPES = {
    CursorKind.TRANSLATION_UNIT,
    CursorKind.NAMESPACE,
    CursorKind.STRUCT_DECL,
    CursorKind.CLASS_DECL,
    CursorKind.CLASS_TEMPLATE,
    CursorKind.CLASS_TEMPLATE_PARTIAL_SPECIALIZATION,
}


def _to_opencl(signature: Signature) -> str:
    """The generated text for clang, line for line.

    A threadgroup variable of the body becomes a reference: only a kernel may declare one, and a kernel
    template is no OpenCL kernel. One in the header stays, and is an error, as it is on Metal.
    """
    text = _HOST_NAME.sub(f"template decltype({signature.instance}) {signature.instance};", signature.text)
    lines = text.splitlines(keepends=True)
    head, body = "".join(lines[: signature.body_line - 1]), "".join(lines[signature.body_line - 1 :])
    replaced = rewrite_threadgroup(
        "{" + body,
        "typedef {type} proof_type_{id}{extents}; "
        "threadgroup proof_type_{id}& {name} = *(threadgroup proof_type_{id}*)0;",
    )
    return head + replaced[1:]


_ARRAYS = (TypeKind.CONSTANTARRAY, TypeKind.INCOMPLETEARRAY, TypeKind.DEPENDENTSIZEDARRAY)
_WORDS = {"device", "constant", "threadgroup", "thread"}


def _unqualified_array(cursor: clang.Cursor) -> bool:
    """An array parameter is a pointer; clang gives it an address space without being told, Metal does not."""
    if cursor.kind != CursorKind.PARM_DECL or cursor.type.kind not in _ARRAYS:
        return False
    return _WORDS.isdisjoint(token.spelling for token in cursor.get_tokens())


def _unqualified(kind: clang.Type) -> bool:
    """True for a pointer or reference, at any level, to something in no named address space."""
    kind = kind.get_canonical()
    while kind.kind in _ARRAYS:
        kind = kind.element_type.get_canonical()
    if kind.kind not in (TypeKind.POINTER, TypeKind.LVALUEREFERENCE, TypeKind.RVALUEREFERENCE):
        return False
    pointee = kind.get_pointee()
    if _unqualified(pointee):
        return True
    # A reference to a pointer may go unqualified, as in `device T*& p`, which MLX's own kernels write.
    if kind.kind == TypeKind.LVALUEREFERENCE and pointee.get_canonical().kind == TypeKind.POINTER:
        return False
    spelling = pointee.spelling
    # `T (&a)[n]` and `T *` carry their address space at the innermost element or in front.
    return not any(space in spelling for space in _SPACES)


def _program_variable(cursor: clang.Cursor) -> str | None:
    parent = cursor.semantic_parent
    if parent is None:
        return None
    outside = parent.kind in _SCOPES
    static = cursor.storage_class == clang.StorageClass.STATIC
    if (outside or static) and "__constant" not in cursor.type.spelling:
        return (
            f"`{cursor.spelling}` lives outside a function call: Metal wants it in the constant address space"
        )
    return None


def _walk(cursor: clang.Cursor) -> Iterator[clang.Cursor]:
    for child in cursor.get_children():
        yield child
        yield from _walk(child)


def _complaint(cursor: clang.Cursor) -> str | None:
    if cursor.kind in _FORBIDDEN:
        return _FORBIDDEN[cursor.kind]
    if cursor.kind == CursorKind.CXX_METHOD and cursor.is_virtual_method():
        return "Metal has no virtual functions"
    if cursor.kind == CursorKind.VAR_DECL and (text := _program_variable(cursor)):
        return text
    kind = cursor.type
    if cursor.kind in _FUNCTIONS:
        kind = cursor.result_type
    elif cursor.kind == CursorKind.TYPEDEF_DECL or cursor.kind == CursorKind.TYPE_ALIAS_DECL:
        kind = cursor.underlying_typedef_type
    elif cursor.kind not in _TYPED:
        return None
    if _unqualified(kind) or _unqualified_array(cursor):
        name = f"`{cursor.spelling}`" if cursor.spelling else "a cast"
        words = "say device, constant, threadgroup or thread"
        return f"the pointer or reference in {name} names no address space; {words}"
    return None


def _recursive(roots: list[clang.Cursor]) -> Iterator[clang.Cursor]:
    calls: dict[str, set[str]] = {}
    where: dict[str, clang.Cursor] = {}
    for function in roots:
        if function.kind not in _FUNCTIONS or not function.is_definition():
            continue
        where[function.spelling] = function
        calls.setdefault(function.spelling, set()).update(
            inner.spelling
            for inner in _walk(function)
            if inner.kind in (CursorKind.CALL_EXPR, CursorKind.OVERLOADED_DECL_REF)
        )
    for name, function in where.items():
        reached: set[str] = set()
        frontier = set(calls[name])
        while frontier:
            reached |= frontier
            frontier = set().union(*(calls.get(other, set()) for other in frontier)) - reached
        if name in reached:
            yield function


def _findings(signature: Signature, unit: clang.TranslationUnit) -> list[Finding]:
    rows: list[tuple[int, str]] = []
    for diagnostic in unit.diagnostics:
        fatal = diagnostic.severity >= clang.Diagnostic.Error
        if _NOT_AN_ERROR.search(diagnostic.spelling):
            continue
        if fatal or diagnostic.option in _WARNINGS:
            inside = diagnostic.location.file is not None and diagnostic.location.file.name == "kernel.metal"
            rows.append((diagnostic.location.line if inside else 0, diagnostic.spelling))
    cursors = []
    for top in unit.cursor.get_children():
        if top.location.file is not None and top.location.file.name == "kernel.metal":
            cursors += [top, *_walk(top)]
    rows += [(cursor.location.line, text) for cursor in cursors if (text := _complaint(cursor))]
    rows += [
        (cursor.location.line, f"`{cursor.spelling}` calls itself: Metal has no recursion")
        for cursor in _recursive(cursors)
    ]
    found = []
    for line, text in dict.fromkeys(rows):
        place = place_in(signature, line)
        found.append(Finding("not-metal", text, place.where, place.line, place.code))
    return found


@functools.cache
def _key_base() -> str:
    digest = hashlib.sha256(" ".join(_FLAGS).encode() + version("libclang").encode())
    for source in (*sorted(Path(__file__).parent.glob("*.py")), *sorted(_INCLUDE.glob("*.h"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def parse_signature(signature: Signature) -> list[Finding]:
    text = _to_opencl(signature)
    key = hashlib.sha256((_key_base() + text).encode()).hexdigest()[:24]
    path = cache_folder() / f"parse-{key}.json"
    if path.exists():
        return [Finding(**row) for row in json.loads(path.read_text())]
    unit = clang.Index.create().parse("kernel.metal", args=_FLAGS, unsaved_files=[("kernel.metal", text)])
    found = _findings(signature, unit)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps([vars(finding) for finding in found]))
    partial.replace(path)
    return found


def parse(
    kernel: Kernel,
    inputs: Sequence[Array | ArrayType],
    *,
    output_dtypes: Sequence[object],
    template: Template = (),
) -> list[Finding]:
    """What Metal's compiler would refuse in this kernel when called with such inputs.

    The inputs' shapes matter: one of fewer than 8 elements arrives in the constant address space.
    """
    types = [item if isinstance(item, ArrayType) else array_types([item])[0] for item in inputs]
    return parse_signature(kernel.signature(types, output_dtypes, template))
