"""The checker finds what is planted, names the line, and is silent on sound kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from metal_proof import Finding, Kernel, Result, run
from metal_proof.selfproof import CASES

F32 = np.float32
IDS = "uint i = thread_position_in_grid.x; uint t = thread_position_in_threadgroup.x;\n"


def check(source: str, inputs: list[Any] | None = None, count: int = 64, **options: Any) -> Result:
    inputs = [np.arange(64, dtype=F32)] if inputs is None else inputs
    kernel = Kernel(
        "planted",
        IDS + source,
        options.pop("header", ""),
        [f"x{i}" for i in range(len(inputs))],
        ["y"],
        options.pop("atomic_outputs", False),
    )
    settings: dict[str, Any] = {"grid": (64, 1, 1), "threadgroup": (64, 1, 1), "output_dtypes": ["float32"]}
    return run(kernel, inputs, output_shapes=[(count,)], **{**settings, **options})


def first(result: Result, kind: str) -> Finding:
    """The first finding; what follows from it in the same schedule may be reported too."""
    assert [finding.kind for finding in result.findings][:1] == [kind], list(map(str, result.findings))
    return result.findings[0]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_no_finding_on_sound_kernels_under_20_schedules(name: str, dtype: str) -> None:
    if name == "histogram" and dtype != "float32":
        pytest.skip("counts are uint32")
    case = CASES[name]() if name == "histogram" else CASES[name](dtype)
    result = case.run(schedules=20).raise_findings()
    assert case.right(result)
    assert not any(result.unwritten_bytes.values())
    assert result.differs == ()


def test_bytes_are_counted_once() -> None:
    result = check(
        "float s = 0; for (int j = 0; j < 16; j++) { s += x0[t % 8 + j]; } if (i < 10) { y[i] = s; }"
    )
    assert not result.findings
    assert result.loaded_bytes == {"x0": 23 * 4, "y": 0}
    assert result.stored_bytes == {"y": 40}
    assert result.unwritten_bytes == {"y": 64 * 4 - 40}


def test_race_within_a_threadgroup() -> None:
    finding = first(check("threadgroup float s[64];\ns[t] = x0[i];\ny[i] = s[63 - t];"), "uninitialised-read")
    assert (finding.where, finding.line) == ("body", 4)
    source = (
        "threadgroup float s[64];\ns[t] = 0;\nthreadgroup_barrier(mem_flags::mem_threadgroup);\ns[t] = 1;\n"
    )
    finding = first(check(source + "y[i] = s[t ^ 32];"), "race")
    # Which of the two accesses comes second depends on the schedule.
    assert {finding.line, 11 - finding.line} == {5, 6}
    assert f"line {11 - finding.line}" in finding.message
    assert "mem_flags::mem_threadgroup" in finding.message


def test_write_after_read_is_a_race() -> None:
    source = """threadgroup float s[64]; s[t] = x0[i]; threadgroup_barrier(mem_flags::mem_threadgroup);
      float v = s[t ^ 1];
      s[t] = v; threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = s[t];"""
    first(check(source), "race")


def test_race_between_threadgroups() -> None:
    finding = first(check("y[t] = x0[i];", threadgroup=(32, 1, 1)), "race")
    assert "threadgroups run in any order" in finding.message


def test_barrier_does_not_order_threadgroups() -> None:
    source = "y[i] = x0[i]; threadgroup_barrier(mem_flags::mem_device); if (i > 40) y[i] = y[63 - i];"
    first(check(source, threadgroup=(32, 1, 1)), "race")


@pytest.mark.parametrize(("flags", "kinds"), [("device", []), ("threadgroup", ["race"]), ("none", ["race"])])
def test_device_memory_needs_the_device_flag(flags: str, kinds: list[str]) -> None:
    source = f"y[t] = x0[t];\nthreadgroup_barrier(mem_flags::mem_{flags});\nfloat v = y[63 - t];\n"
    source += "threadgroup_barrier(mem_flags::mem_device); y[t] = v;"
    assert [finding.kind for finding in check(source).findings] == kinds


def test_both_flags_fence_both() -> None:
    source = """threadgroup float s[64]; s[t] = 1; y[t] = 2;
      threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
      float v = s[63 - t] + y[63 - t]; threadgroup_barrier(mem_flags::mem_device); y[t] = v;"""
    assert check(source).raise_findings().values()[0] == 3


def test_simdgroup_barrier_orders_its_simdgroup_first() -> None:
    source = "threadgroup float s[64]; s[t] = x0[i]; simdgroup_barrier(mem_flags::mem_threadgroup);\n"
    check(source + "y[i] = s[t ^ 1];").raise_findings()
    assert check(source + "y[i] = s[t ^ 32];").findings


def test_simd_operation_is_no_fence() -> None:
    source = "threadgroup float s[64]; s[t] = x0[i]; float v = simd_sum(x0[i]); y[i] = v + s[t ^ 1];"
    first(check(source), "race")


def test_plain_access_races_with_an_atomic_one() -> None:
    source = """threadgroup uint n[1]; if (t == 0) n[0] = 0; threadgroup_barrier(mem_flags::mem_threadgroup);
      atomic_fetch_add_explicit((threadgroup atomic_uint*)n, 1u, memory_order_relaxed); """
    check(source + "threadgroup_barrier(mem_flags::mem_threadgroup); y[i] = n[0];").raise_findings()
    first(check(source + "y[i] = n[0];"), "race")


@pytest.mark.parametrize(
    ("source", "name", "line"),
    [
        ("y[i] = x0[i + 1];", "x0[64]", 2),
        ("\ny[i + 1] = x0[i];", "y[64]", 3),
        ("y[i] = x0[int(i) - 1];", "x0[-1]", 2),
        ("y[i] = x0[ulong(i) * 100000000];", "far from any buffer", 2),
        ("y[i] = ((const device float4*)x0)[i].w;", "x0[67]", 2),
        ("threadgroup float s[64]; threadgroup float* p = s;\np[t + 1] = 1; y[i] = 0;", "`s` at byte 256", 3),
    ],
)
def test_out_of_bounds(source: str, name: str, line: int) -> None:
    finding = first(check(source), "out-of-bounds")
    assert name in finding.message
    assert finding.line == line


def test_another_threads_private_memory_is_out_of_bounds() -> None:
    """A wild address may lie in any stack: it is refused there as well."""
    finding = first(
        check(
            "threadgroup ulong at[64]; int own = 0; at[t] = (ulong)&own;"
            "threadgroup_barrier(mem_flags::mem_threadgroup);"
            "*(thread int*)at[63 - t] = 1; y[i] = own;"
        ),
        "out-of-bounds",
    )
    assert "far from any buffer" in finding.message


def test_out_of_bounds_write_does_not_happen() -> None:
    x = np.arange(64, dtype=F32)
    result = check("((device float*)y)[i * 1000000] = 1; y[i] = x0[i];", [x])
    first(result, "out-of-bounds")


@pytest.mark.parametrize(
    "source", ["threadgroup float s[8]; s[t] = 1; y[i] = 0;", "float a[4] = {0}; a[t] = 1; y[i] = a[0];"]
)
def test_index_beyond_an_array_type(source: str) -> None:
    finding = first(check(source), "out-of-bounds")
    assert finding.line == 2


def test_an_atomic_store_reads_nothing_and_an_atomic_update_does() -> None:
    declared = "threadgroup atomic_uint s[64];\n"
    stored = "atomic_store_explicit(&s[t], 1, memory_order_relaxed);\n"
    added = "atomic_fetch_add_explicit(&s[t], 1, memory_order_relaxed);\ny[i] = x0[i];"
    assert not check(declared + stored + added).findings
    assert first(check(declared + added), "uninitialised-read").line == 3


def test_uninitialised_output_is_not_readable() -> None:
    assert first(check("y[i] += x0[i];"), "uninitialised-read").line == 2
    check("y[i] += x0[i];", init_value=0).raise_findings()


def test_threadgroup_memory_is_fresh_in_every_threadgroup() -> None:
    source = "threadgroup float s[32]; if (threadgroup_position_in_grid.x == 0) s[t] = 1; y[i] = s[t];"
    first(check(source, threadgroup=(32, 1, 1)), "uninitialised-read")


def test_write_to_an_input_is_refused_and_not_done() -> None:
    x = np.arange(64, dtype=F32)
    finding = first(check("((device float*)x0)[i] = 5; y[i] = 0;", [x]), "write-to-input")
    assert finding.line == 2
    assert x[0] == 0


@pytest.mark.parametrize(
    "source",
    [
        "if (t < 32) threadgroup_barrier(mem_flags::mem_none);\n y[i] = 0;",
        "if (t >= 40) return;\nthreadgroup_barrier(mem_flags::mem_none); y[i] = 0;",
        "const auto f = mem_flags::mem_none;\nif (t) threadgroup_barrier(f); else\nthreadgroup_barrier(f);",
        "for (uint j = 0; j < t / 32; j++) { threadgroup_barrier(mem_flags::mem_none); }",
        "if (t % 2) { simdgroup_barrier(mem_flags::mem_none); } y[i] = 0;",
    ],
)
@pytest.mark.parametrize("checked", [True, False])
def test_divergent_barrier(source: str, checked: bool) -> None:
    finding = first(check(source, check=checked), "divergent-barrier")
    assert finding.line > 0


def test_threadgroup_memory_limit() -> None:
    source = "threadgroup float s[{}]; threadgroup half h[2]; s[t] = h[0] = 1; y[i] = 0;"
    assert check(source.format(8191)).threadgroup_bytes == 32768
    finding = first(check(source.format(8192), check=False), "threadgroup-memory")
    assert "32772" in finding.message


def test_thread_and_buffer_limits() -> None:
    result = check("y[i] = 0;", grid=(2048, 1, 1), threadgroup=(1025, 1, 1))
    assert "1025" in first(result, "too-many-threads").message
    assert "31" in first(check("y[i] = 0;", [np.zeros(8, F32)] * 31), "too-many-buffers").message


def test_reading_a_lane_that_does_not_take_part() -> None:
    source = "float v = 0;\nif (t % 32 < 16) {\n v = simd_shuffle_xor(x0[i], 16);\n}\ny[i] = v;"
    assert first(check(source), "inactive-lane").line == 4


def test_matrix_operation_needs_the_whole_simdgroup() -> None:
    source = "if (t < 16) { simdgroup_float8x8 m; simdgroup_load(m, x0); simdgroup_store(m, y); }"
    assert "inactive-lane" in {finding.kind for finding in check(source).findings}


def test_lanes_may_not_read_what_a_matrix_store_wrote_without_a_barrier() -> None:
    source = """threadgroup float s[64];
      simdgroup_float8x8 m = make_filled_simdgroup_matrix<float, 8, 8>(2.0f);
      if (t < 32) { simdgroup_store(m, s); FENCE y[t] = s[t]; y[t + 32] = s[t + 32]; }"""
    assert check(source.replace("FENCE", "")).findings
    check(source.replace("FENCE", "simdgroup_barrier(mem_flags::mem_threadgroup);")).raise_findings()


def test_endless_loop_stops() -> None:
    first(
        check("volatile device float* p = y; p[i] = 0; while (p[i] == 0) { }", access_limit=100000),
        "too-long",
    )


def test_integer_division_by_zero() -> None:
    first(check("y[i] = 10 / int(x0[i]);"), "division-by-zero")


def test_misaligned_vector_access() -> None:
    source = "y[i] = 0; if (i == 0) { ((device uint64_t*)((device char*)y + 4))[0] = 5; }"
    first(check(source), "misaligned")


def test_signed_zero_and_nan_patterns_survive() -> None:
    x = np.array([0.0, -0.0, np.inf, np.nan, 1e-45, -1e-45, 3e38, 1], F32)
    result = check("y[i] = x0[i];", [x], count=8, grid=(8, 1, 1)).raise_findings()
    assert np.array_equal(result.values().view(np.uint32), x.view(np.uint32))
