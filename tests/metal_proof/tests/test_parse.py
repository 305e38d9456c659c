"""The parse pass takes what Metal takes and refuses what Metal refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metal_proof import ArrayType, Finding, Kernel, parse
from metal_proof.selfproof import CASES, Case

WIDE = ArrayType("float32", (16,))


def look(source: str, header: str = "", x: ArrayType = WIDE, template: Any = ()) -> list[Finding]:
    kernel = Kernel("text", source, header, ["x"], ["y"])
    return parse(kernel, [x], output_dtypes=["float32"], template=template)


def parse_case(case: Case) -> list[Finding]:
    return parse(case.kernel, case.inputs, output_dtypes=[case.output_dtype], template=case.template)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_own_kernels_are_metal(name: str, dtype: str) -> None:
    case = CASES[name]() if name == "histogram" else CASES[name](dtype)
    assert parse_case(case) == []


SOUND = {
    "pointers": "const device float* p = x + 1; thread float* q; float v = p[0]; q = &v; y[0] = *q;",
    "references": "float v = 0; thread float& r = v; r = 2; device float& o = y[0]; o = r;",
    "auto": "auto p = x + 1; const auto n = 3; y[0] = p[n];",
    "vectors": """const device float4* v = (const device float4*)x; float4 a = v[0]; a.zw = a.xy;
      uint2 u = as_type<uint2>(a.xy);
      half4 h = max(half4(a), half4(0)); y[0] = dot(a.xyz, float3(1)) + u.x + h.x + float4(a.xy, 1, 2).w;""",
    "literals": "y[0] = 1.0 / 3 + 1e-5 + 1.5h; half h = 2.0h; y[1] = h * 2;",
    "bfloat": "bfloat b = bfloat(1.5f); b += bfloat(x[0]); half h = half(b); y[0] = float(b) + h;",
    "names OpenCL reserves": "uint local = 3; uint global = local; uint private_ = global; y[0] = private_;",
    "threadgroup pointers": "threadgroup float s[8], t; threadgroup float* p = s; p[0] = t = 2; y[0] = s[1];",
    "atomics": """volatile device atomic_uint* p = (volatile device atomic_uint*)y; threadgroup atomic_uint n;
      atomic_store_explicit(&n, 0, memory_order_relaxed);
      atomic_fetch_add_explicit(p, 1, memory_order_relaxed);""",
    "simd": """float v = metal::simd_sum(x[0]) + simd_shuffle_xor(x[1], 4);
      if (simd_any(v > 0)) { y[0] = v; }
      simdgroup_float8x8 m(1.0f), n; simdgroup_load(n, x, 8, ulong2(0, 0), true);
      m = m * n; simdgroup_store(m, y);
      y[1] = m.thread_elements()[0];""",
    "mlx": """y[0] = x[elem_to_loc(3, x_shape, x_strides, x_ndim)];
      y[1] = Limits<float>::max + ceildiv(3, 2) + cast_to<int>(x[0]);""",
    "if constexpr": "if constexpr (sizeof(float) == 4) { y[0] = 1; }",
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_text_is_accepted(name: str) -> None:
    assert look(SOUND[name]) == []


def test_sound_headers_are_accepted() -> None:
    header = """
      constant constexpr int N = 4;
      constant float table[N] = {1, 2, 3, 4};
      template <typename T, int M> struct Pair {
        static constant constexpr int count = M;
        T value[M];
        T first() const thread { return value[0]; }
      };
      template <typename T> inline T pick(const device T* p, const constant float* t, thread T& out) {
        out = T(t[1]);
        return p[0];
      }
      inline float second(const thread float (&values)[4]) { return values[1]; }
    """
    source = """T out; Pair<T, 3> pair; pair.value[0] = pick((const device T*)x, table, out);
      float four[4] = {0}; y[0] = pair.first() + out + Pair<T, 3>::count + second(four);"""
    for dtype in (np.float32, np.float16):
        assert look(source, header, template=[("T", dtype)]) == []


FORBIDDEN = {
    "double": ("double d = 1; y[0] = d;", "", "double"),
    "lambda": ("auto f = [&](int i) { return i; }; y[0] = f(1);", "", "lambda"),
    "goto": ("goto end; end: y[0] = 1;", "", "goto"),
    "recursion": ("y[0] = f(3);", "int f(int n) { return n < 2 ? 1 : f(n - 1); }", "recursion"),
    "mutual recursion": (
        "y[0] = f(3);",
        "int g(int n); int f(int n) { return g(n); } int g(int n) { return f(n); }",
        "recursion",
    ),
    "program variable": ("y[0] = q[1];", "float q[2] = {1, 2};", "constant address space"),
    "static member": ("y[0] = S::n;", "struct S { static constexpr int n = 2; };", "constant address space"),
    "static local": ("static int c = 0; y[0] = c++;", "", "constant address space"),
    "threadgroup in a function": (
        "y[0] = f();",
        "inline float f() { threadgroup float s[4]; s[0] = 1; return s[0]; }",
        "local address space",
    ),
    "write to an input": ("x[0] = 1;", "", "read-only"),
    "unqualified pointer": ("const float* p = x; y[0] = p[0];", "", "no address space"),
    "unqualified parameter": (
        "float v = 1; y[0] = f(&v);",
        "float f(float* p) { return p[0]; }",
        "no address space",
    ),
    "unqualified reference": (
        "float v = 1; f(v); y[0] = v;",
        "void f(float& p) { p = 2; }",
        "no address space",
    ),
    "unqualified array parameter": (
        "float v[2] = {1, 2}; y[0] = f(v);",
        "float f(float p[2]) { return p[0]; }",
        "no address space",
    ),
    "unqualified template parameter": (
        "y[0] = f(x);",
        "template <typename T> float f(const T* p) { return p[0]; }",
        "no address space",
    ),
    "unqualified field": ("S s; s.p = y; s.p[0] = 1;", "struct S { float* p; };", "no address space"),
    "unqualified cast": ("y[0] = ((float*)x)[0];", "", "no address space"),
    "wrong space": ("threadgroup float s[2]; device float* p = s; p[0] = 1;", "", "cannot initialize"),
    "wrong cast": (
        "threadgroup float s[2]; device float* p = (device float*)s; p[0] = 1;",
        "",
        "address space",
    ),
    "function pointer": (
        "y[0] = f(g);",
        "float g(float a) { return a; } float f(float (*h)(float)) { return h(1); }",
        "function",
    ),
    "new": ("thread int* p = new int; y[0] = *p;", "", "new"),
    "virtual": ("y[0] = 1;", "struct S { virtual int f() { return 1; } };", "virtual"),
    "throw": ("throw 1;", "", "exceptions"),
    "printf": ('printf("x"); y[0] = 1;', "", "undeclared"),
    "uninitialised": ("float a; y[0] = a;", "", "uninitialized"),
    "missing return": ("y[0] = f(1);", "int f(int a) { if (a > 1) return 2; }", "return"),
    "swizzle reference": ("float2 v = 1; v.x = sincos(x[0], v.y); y[0] = v.x;", "", "vector element"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_metal_lacks_is_refused(name: str) -> None:
    source, header, word = FORBIDDEN[name]
    found = look(source, header)
    assert found, "accepted"
    assert any(word in finding.message for finding in found), list(map(str, found))


def test_small_inputs_arrive_in_the_constant_address_space() -> None:
    header = "inline float f(const device float* p) { return p[0]; }"
    assert look("y[0] = f(x);", header) == []
    assert look("y[0] = f(x);", header, ArrayType("float32", (7,)))
    assert look("y[0] = x;", x=ArrayType("float32", ())) == []


def test_a_finding_names_the_line() -> None:
    finding = look("y[0] = 1;\n\n  float* p = y;", "// one\n// two\n")[0]
    assert (finding.where, finding.line, finding.code) == ("body", 3, "float* p = y;")
    finding = look("y[0] = 1;", "// one\nint q = 3;\n")[0]
    assert (finding.where, finding.line) == ("header", 2)
