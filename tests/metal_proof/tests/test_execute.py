"""Kernels give what numpy gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metal_proof import BFloat16, BuildError, Kernel, Result, run
from metal_proof.arrays import Dtype
from metal_proof.selfproof import CASES

F32 = np.float32


def launch(source: str, inputs: list[Any], count: int, dtype: str = "float32", **options: Any) -> Result:
    """Runs a body over `x0`, `x1`, ... giving `y`, one thread per element unless told otherwise."""
    names = [f"x{i}" for i in range(len(inputs))]
    kernel = Kernel("body", source, options.pop("header", ""), names, ["y"])
    options = {"grid": (count, 1, 1), "threadgroup": (min(count, 64), 1, 1), **options}
    result = run(kernel, inputs, output_shapes=[(count,)], output_dtypes=[dtype], **options)
    return result.raise_findings()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in CASES if name != "histogram"])
def test_own_kernels_equal_numpy(name: str, dtype: str) -> None:
    case = CASES[name](dtype)
    result = case.run(check=False)
    assert not result.findings
    assert case.right(result), case.error(result)


def test_own_histogram_equals_numpy() -> None:
    case = CASES["histogram"]()
    assert case.right(case.run(check=False))


def test_ragged_grid_and_attributes() -> None:
    source = """
      uint3 p = thread_position_in_grid;
      uint i = (p.z * threads_per_grid.y + p.y) * threads_per_grid.x + p.x;
      uint3 g = threadgroup_position_in_grid;
      uint3 t = thread_position_in_threadgroup;
      uint3 n = threads_per_threadgroup;
      bool same = g.x * dispatch_threads_per_threadgroup.x + t.x == p.x &&
                  thread_index_in_threadgroup == (t.z * n.y + t.y) * n.x + t.x &&
                  thread_index_in_simdgroup == thread_index_in_threadgroup % 32 &&
                  simdgroup_index_in_threadgroup == thread_index_in_threadgroup / 32 &&
                  simdgroups_per_threadgroup == (n.x * n.y * n.z + 31) / 32 && threads_per_simdgroup == 32;
      y[i] = same ? n.x * 100 + n.y : 0;
    """
    kernel = Kernel("ids", source, "", [], ["y"])
    result = run(
        kernel, grid=(7, 5, 2), threadgroup=(4, 3, 1), output_shapes=[(2, 5, 7)], output_dtypes=["uint32"]
    ).raise_findings()
    x = np.array([4, 4, 4, 4, 3, 3, 3])
    y = np.array([3, 3, 3, 2, 2])
    assert np.array_equal(result.values(), np.broadcast_to(x * 100 + y[:, None], (2, 5, 7)))


def test_threadgroup_is_clipped_to_the_grid() -> None:
    result = launch(
        "y[thread_position_in_grid.x] = threads_per_threadgroup.x;", [], 5, threadgroup=(256, 1, 1)
    )
    assert np.array_equal(result.values(), [5] * 5)


def test_scalar_and_small_inputs_shapes_and_strides() -> None:
    source = """uint i = thread_position_in_grid.x;
      y[i] = x0 + x1[i] + x2_shape[i] * 10 + x2_strides[i] * 100 + x2_ndim * 1000;"""
    x2 = np.zeros((4, 3, 5), F32)
    result = launch(source, [F32(0.5).reshape(()), np.array([1, 2, 3], F32), x2], 3)
    expected = 0.5 + np.array([1, 2, 3]) + np.array([4, 3, 5]) * 10 + np.array([15, 5, 1]) * 100 + 3000
    assert np.array_equal(result.values(), expected)


def test_mlx_utilities_are_there() -> None:
    source = """uint i = thread_position_in_grid.x;
      float v = x0[elem_to_loc(i, x0_shape, x0_strides, x0_ndim)];
      y[i] = v + ceildiv(7, 2) + float(Limits<half>::finite_max);"""
    x = np.arange(12, dtype=F32).reshape(3, 4)
    assert np.array_equal(launch(source, [x], 12).values(), x.ravel() + 4 + 65504)


def test_half_rounds_after_every_operation() -> None:
    random = np.random.default_rng(0)
    a, b, c = (random.normal(0, 100, 512).astype(np.float16) for _ in range(3))
    source = "uint i = thread_position_in_grid.x; y[i] = x0[i] * x1[i] + x2[i] / x1[i] - x0[i];"
    with np.errstate(over="ignore"):
        expected = a * b + c / b - a
    assert np.array_equal(launch(source, [a, b, c], 512, "float16").values(), expected, equal_nan=True)


def test_bfloat_rounds_to_nearest_even() -> None:
    random = np.random.default_rng(0)
    values = random.normal(0, 1, 4096).astype(F32)
    values[:6] = [1.00390625, 1.01171875, 3.4e38, np.inf, np.nan, -0.0]
    source = "uint i = thread_position_in_grid.x; y[i] = bfloat16_t(x0[i]);"
    output = launch(source, [values], 4096, "bfloat16").outputs[0]
    assert isinstance(output, BFloat16)
    assert np.array_equal(output.to_float32(), BFloat16.from_float32(values).to_float32(), equal_nan=True)
    assert output.to_float32()[:3].tolist() == [1.0, 1.015625, np.inf]


def test_bfloat_arithmetic_stays_bfloat() -> None:
    a = BFloat16.from_float32([1.0] * 8)
    b = BFloat16.from_float32([0.00390625] * 8)
    source = "uint i = thread_position_in_grid.x; y[i] = (x0[i] + x1[i]) * 1.0f;"
    assert launch(source, [a, b], 8).values().tolist() == [1.0] * 8  # float would give 1.00390625


@pytest.mark.parametrize(
    "line", ["bfloat b = x0[0];", "bfloat b = bfloat(1) + x0[0];", "half2 h = half2(1); float2 f = h;"]
)
def test_conversions_metal_lacks_do_not_compile(line: str) -> None:
    with pytest.raises(BuildError, match=r"kernel\.metal"):
        launch(f"{line} y[thread_position_in_grid.x] = 0;", [np.ones(8, F32)], 1)


MATH: dict[str, Any] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log2": np.log2,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "floor": np.floor,
    "ceil": np.ceil,
    "rint": np.rint,
    "trunc": np.trunc,
    "abs": np.abs,
    "rsqrt": lambda v: 1 / np.sqrt(v),
    "fract": lambda v: v - np.floor(v),
    "sign": np.sign,
    "saturate": lambda v: np.clip(v, 0, 1),
    "metal::fast::exp": np.exp,
    "metal::precise::sqrt": np.sqrt,
}


@pytest.mark.parametrize("kind", ["float", "float4", "half"])
def test_math(kind: str) -> None:
    x = np.random.default_rng(1).uniform(0.1, 4, 64).astype(np.float16 if kind == "half" else F32)
    lines = []
    for row, name in enumerate(MATH):
        if kind == "float4":
            lines.append(f"((device float4*)y)[{row} * 16 + i] = {name}(((const device float4*)x0)[i]);")
        else:
            lines.append(f"y[{row} * 64 + i] = {name}(x0[i]);")
    count = 16 if kind == "float4" else 64
    kernel = Kernel("math", "uint i = thread_position_in_grid.x;\n" + "\n".join(lines), "", ["x0"], ["y"])
    result = run(
        kernel,
        [x],
        grid=(count, 1, 1),
        threadgroup=(count, 1, 1),
        output_shapes=[(len(MATH), 64)],
        output_dtypes=["float32"],
    ).raise_findings()
    expected = np.array([function(x.astype(np.float64)) for function in MATH.values()])
    np.testing.assert_allclose(result.values(), expected, rtol=2e-3 if kind == "half" else 1e-6, atol=1e-6)


def test_vectors_and_swizzles() -> None:
    source = """
      float4 v = ((const device float4*)x0)[0];
      float2 a = v.xy + v.zw;          // 4 6
      v.yx = a * 2;                    // 12 8 3 4
      v.zw += float2(1, 2);            // 12 8 4 6
      uint4 bits = (uint4(v) >> 1u) & 7u;       // 6 4 2 3
      float3 c = float3(a, 9).zyx;     // 9 6 4
      float4 results[2] = {v, float4(bits)};
      for (int i = 0; i < 4; i++) { y[i] = results[0][i]; y[4 + i] = results[1][i]; }
      y[8] = dot(c, float3(1, 10, 100));
      y[9] = all(v > 3.0f) + 2 * any(v == float4(8)) + 4 * any(v < 0.0f);
      y[10] = select(v, float4(1), v > 7).x + as_type<float>(as_type<uint>(2.5f));
      y[11] = max(v, 7.0f).z + clamp(v.w, 0.0f, 5.0f) + min(3, 4) + length(float2(3, 4));
      y[12] = popcount(255u) + clz(1u) + ctz(8u) + (int(mulhi(0x80000000u, 4u)) << 4);
      y[13] = float(half(1.0h / 3.0h));
      packed_float3 p = packed_float3(c); y[14] = p[2] + sizeof(packed_float3) + sizeof(float3);
      y[15] = fma(2.0f, 3.0f, 1.0f) + mix(0.0f, 10.0f, 0.5f) + extract_bits(0xF0u, 4, 4) + rotate(1u, 33u);
    """
    result = launch(
        source, [np.array([1, 2, 3, 4, 0, 0, 0, 0], F32)], 16, grid=(1, 1, 1), threadgroup=(1, 1, 1)
    )
    expected: list[Any] = [12, 8, 4, 6, 6, 4, 2, 3, 469, 3, 3.5, 20, 74, np.float16(1 / 3), 32, 29]
    assert result.values().tolist() == [float(F32(value)) for value in expected]


SIMD: dict[str, Any] = {
    "simd_sum(v)": lambda v: np.full(32, v.sum()),
    "simd_max(v)": lambda v: np.full(32, v.max()),
    "simd_min(v)": lambda v: np.full(32, v.min()),
    "simd_prefix_inclusive_sum(v)": np.cumsum,
    "simd_prefix_exclusive_sum(v)": lambda v: np.cumsum(v) - v,
    "simd_shuffle(v, ushort(31 - lane))": lambda v: v[::-1],
    "simd_shuffle_xor(v, 5)": lambda v: v[np.arange(32) ^ 5],
    "simd_shuffle_down(v, 3)": lambda v: np.concatenate([v[3:], v[29:]]),
    "simd_shuffle_up(v, 3)": lambda v: np.concatenate([v[:3], v[:29]]),
    "simd_shuffle_rotate_down(v, 3)": lambda v: np.roll(v, -3),
    "simd_shuffle_and_fill_up(v, -1, 2)": lambda v: np.concatenate([[-1, -1], v[:30]]),
    "simd_broadcast(v, 7)": lambda v: np.full(32, v[7]),
    "simd_broadcast_first(v)": lambda v: np.full(32, v[0]),
    "int(ulong(simd_ballot(v > 40)) & 0x7FFFFFFF)": lambda v: np.full(
        32, sum(1 << i for i in range(31) if v[i] > 40)
    ),
    "simd_any(v == 50) + 2 * simd_all(v > 0)": lambda v: np.full(32, (v == 50).any() + 2 * (v > 0).all()),
    "simd_is_first()": lambda _: np.arange(32) == 0,
    "(lane < 10 ? simd_sum(v) : -simd_max(v))": lambda v: np.where(
        np.arange(32) < 10, v[:10].sum(), -v[10:].max()
    ),
}


def test_simdgroup_operations() -> None:
    v = np.random.default_rng(2).permutation(np.arange(1, 33)).astype(np.int32)
    lines = [f"y[{row} * 32 + lane] = {text};" for row, text in enumerate(SIMD)]
    source = "uint lane = thread_index_in_simdgroup; int v = x0[lane];\n" + "\n".join(lines)
    kernel = Kernel("simd", source, "", ["x0"], ["y"])
    result = run(
        kernel,
        [v],
        grid=(32, 1, 1),
        threadgroup=(32, 1, 1),
        output_shapes=[(len(SIMD), 32)],
        output_dtypes=["int32"],
        schedules=5,
    ).raise_findings()
    for text, row in zip(SIMD, result.values(), strict=True):
        assert np.array_equal(row, SIMD[text](v)), text
    assert result.partial_collectives == 2


def test_loops_with_different_trip_counts_converge_again() -> None:
    source = """uint lane = thread_index_in_simdgroup; int total = 0;
      for (uint i = 0; i <= lane; i++) { total += simd_sum(1); }
      y[lane] = simd_sum(total);"""
    lanes = np.arange(32)
    total = sum(sum(32 - i for i in range(lane + 1)) for lane in lanes)
    assert np.array_equal(launch(source, [], 32, "int32").values(), [total] * 32)


def test_matrices_load_transposed_and_at_an_origin() -> None:
    source = """
      simdgroup_float8x8 a, b, c(2.0f);
      simdgroup_load(a, x0, 16, ulong2(4, 2));
      simdgroup_load(b, x0, 16, 0, true);
      simdgroup_multiply(a, a, b);
      simdgroup_multiply_accumulate(a, c, a, c);
      simdgroup_store(a, y, 8);
    """
    x = np.random.default_rng(3).normal(size=(16, 16)).astype(F32)
    result = launch(source, [x], 64, grid=(32, 1, 1), threadgroup=(32, 1, 1)).values()
    expected = 2 * (x[2:10, 4:12] @ x[:8, :8].T) + 2 * np.eye(8)
    np.testing.assert_allclose(result.reshape(8, 8), expected, atol=1e-5)


def test_device_atomics() -> None:
    source = """
      uint i = thread_position_in_grid.x;
      atomic_fetch_add_explicit(y + 0, x0[i], memory_order_relaxed);
      atomic_fetch_max_explicit(y + 1, x0[i], memory_order_relaxed);
      atomic_fetch_or_explicit(y + 2, 1 << (x0[i] % 16), memory_order_relaxed);
      int expected = 0;
      if (atomic_compare_exchange_weak_explicit(
              y + 3, &expected, 7, memory_order_relaxed, memory_order_relaxed)) {
        atomic_fetch_sub_explicit(y + 4, 5, memory_order_relaxed);
      }
    """
    x = np.random.default_rng(4).integers(1, 1000, 200).astype(np.int32)
    kernel = Kernel("atomics", source, "", ["x0"], ["y"], atomic_outputs=True)
    result = run(
        kernel,
        [x],
        grid=(200, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(5,)],
        output_dtypes=["int32"],
        init_value=0,
    ).raise_findings()
    expected = [x.sum(), x.max(), np.bitwise_or.reduce(1 << (x % 16)), 7, -5]
    assert result.values().tolist() == expected


def test_results_that_depend_on_the_schedule_are_named() -> None:
    kernel = Kernel(
        "slots",
        """
      uint slot = atomic_fetch_add_explicit((device atomic_uint*)next, 1u, memory_order_relaxed);
      y[slot] = thread_position_in_grid.x;
    """,
        "",
        [],
        ["next", "y"],
    )
    result = run(
        kernel,
        grid=(64, 1, 1),
        threadgroup=(64, 1, 1),
        output_shapes=[(1,), (64,)],
        output_dtypes=["uint32", "uint32"],
        init_value=0,
    )
    assert not result.findings
    assert result.differs == ("y",)


def test_template_values() -> None:
    source = "y[thread_position_in_grid.x] = float(T(x0[0])) * N + (B ? 0.25f : 0.5f);"
    template = [("T", Dtype("bfloat16")), ("N", -3), ("B", True)]
    assert launch(source, [np.full(8, 1.00001, F32)], 1, template=template).values().tolist() == [-2.75]


def test_portable_switch() -> None:
    """The same results with ucontext, which other processors use."""
    code = (
        "from metal_proof.selfproof import CASES\n"
        "case = CASES['softmax']()\n"
        "result = case.run()\n"
        "print(len(result.findings), case.right(result))"
    )
    environment = {**os.environ, "DSV4_MLX_PROOF_PORTABLE": "1"}
    folder = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    assert done.stdout.split() == ["0", "True"], done.stderr
