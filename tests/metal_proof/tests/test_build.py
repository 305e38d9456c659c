"""Compiled kernels are kept by content and found again; what does not compile says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from metal_proof import BuildError, Kernel, build, parse, run
from metal_proof.rewrite import Variable, blank, rewrite_threadgroup, threadgroup_variables

BODY = "y[thread_position_in_grid.x] = x[thread_position_in_grid.x] * FACTOR;"


def scale(header: str) -> Any:
    kernel = Kernel("scale", BODY, header, ["x"], ["y"])
    options: dict[str, Any] = {"grid": (8, 1, 1), "threadgroup": (8, 1, 1), "schedules": 1}
    return run(kernel, [np.ones(8, np.float32)], output_shapes=[(8,)], output_dtypes=["float32"], **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; the runtime stays where it was, as this process has it loaded."""
    build.runtime_library()
    monkeypatch.setenv("DSV4_MLX_PROOF_CACHE", str(tmp_path))
    build.kernel_library.cache_clear()
    return tmp_path


def test_a_library_is_made_once(cache: Path) -> None:
    assert scale("#define FACTOR 3\n").outputs[0][0] == 3
    made = {path: path.stat().st_mtime_ns for path in cache.glob("kernel-*.so")}
    assert len(made) == 1
    build.kernel_library.cache_clear()
    scale("#define FACTOR 3\n")
    assert {path: path.stat().st_mtime_ns for path in cache.glob("kernel-*.so")} == made


def test_the_key_is_the_preprocessed_text(cache: Path) -> None:
    """A change that only the preprocessor can see makes another library."""
    text = "#define FACTOR 3\n"
    first = build.kernel_library(
        f'{text}extern "C" void proof_thread() {{ int a = FACTOR; (void)a; }}', False
    )
    same = build.kernel_library(f'{text}extern "C" void proof_thread() {{ int a = 3; (void)a; }}', False)
    other = build.kernel_library('extern "C" void proof_thread() { int a = 4; (void)a; }', False)
    assert first.path == same.path
    assert first.path != other.path
    assert first.path.parent == cache


def test_a_changed_header_makes_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of the tool, and MLX's, are in the key as well as the kernel."""
    folder = cache / "mlx" / "include"
    kernels = folder / "mlx" / "backend" / "metal" / "kernels"
    kernels.mkdir(parents=True)
    monkeypatch.setattr(build, "mlx_include", lambda: folder)
    text = 'extern "C" int proof_thread() { return CONSTANT; }'
    paths = []
    for value in (1, 2):
        (kernels / "utils.h").write_text(f"static constexpr int CONSTANT = {value};\n")
        build.kernel_library.cache_clear()
        paths.append(build.kernel_library(text, False).path)
    assert paths[0] != paths[1]
    build.kernel_library.cache_clear()


def test_a_parse_is_kept_too(cache: Path) -> None:
    kernel = Kernel("bad", "float* p = y;", "", ["x"], ["y"])
    inputs = [np.ones(8, np.float32)]
    first = parse(kernel, inputs, output_dtypes=["float32"])
    assert len(list(cache.glob("parse-*.json"))) == 1
    assert parse(kernel, inputs, output_dtypes=["float32"]) == first


def test_a_compile_error_shows_the_line() -> None:
    with pytest.raises(BuildError, match=r"kernel\.metal:\d+:.*\n.*FACTOR|FACTOR.*not declared"):
        scale("\n")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DSV4_MLX_PROOF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / "dsv4-mlx" / "proof"


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        (" float a", [Variable("float", "a", "")]),
        (" T a[N * 2], b[3][4]", [Variable("T", "a", "[N * 2]"), Variable("T", "b", "[3][4]")]),
        (" vec<T, 4> a[8], c", [Variable("vec<T, 4>", "a", "[8]"), Variable("vec<T, 4>", "c", "")]),
        (" float* p", None),
        (" float* p = a + 1", None),
        (" float& r = a[0]", None),
    ],
)
def test_threadgroup_declarations(text: str, variables: list[Variable] | None) -> None:
    assert threadgroup_variables(text) == variables


def test_rewriting_keeps_lines_and_comments() -> None:
    text = "{ // threadgroup int no;\n  threadgroup float a[4],\n    b;\n  f((threadgroup float*)a); }"
    made = rewrite_threadgroup(text, "<{type} {name}{extents}>")
    assert made == "{ // threadgroup int no;\n  <float a[4]><float b>\n\n  f((threadgroup float*)a); }"
    assert blank('a "//" /* b\n */ c // d') == "a" + " " * 10 + "\n    c     "
