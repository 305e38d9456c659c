"""Compiles a kernel's C++ text, and the runtime, into shared libraries kept by content.

The key of a library hashes the *preprocessed* text, so that a change in any header, MLX's included, makes a
new one; and the compiler and its flags, so that a cache carried to another machine is not trusted there.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_RUNTIME_SOURCES = sorted((_HERE / "runtime").glob("*.cpp"))


@dataclass(frozen=True)
class Numerics:
    """What a GPU may do with floats: by default nothing that IEEE 754 and the C library do not.

    functions: inexact functions are as far off as Metal's specification allows, and of `fast::` min, max and
    clamp a NaN comes out where the precise ones drop it. contract: products and sums are fused wherever the
    compiler can. flush: subnormal numbers are zero, going in and coming out.
    """

    functions: bool = False
    contract: bool = False
    flush: bool = False

    def flags(self) -> list[str]:
        """The compiler's; `flush` is a state of the thread that runs (launch.flushed)."""
        contract = f"-ffp-contract={'fast' if self.contract else 'off'}"
        return [contract, *(["-DPROOF_WORST_FUNCTIONS"] if self.functions else [])]


PLAIN = Numerics()


class BuildError(Exception):
    """A kernel that does not compile. The message is the compiler's, in lines of the generated text."""


def cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(os.environ.get("DSV4_MLX_PROOF_CACHE") or Path(base) / "dsv4-mlx" / "proof")


@dataclass(frozen=True)
class Compiler:
    path: str
    version: str
    clang: bool
    flags: tuple[str, ...]


def _processor_flags() -> list[str]:
    """Hardware half conversion and fused multiply-add, where the processor has them."""
    if platform.machine() != "x86_64":
        return []
    known = Path("/proc/cpuinfo").read_text().split() if Path("/proc/cpuinfo").exists() else []
    return [f"-m{name}" for name in ("f16c", "fma", "avx2") if name in known]


def mlx_include() -> Path:
    spec = importlib.util.find_spec("mlx.core")
    if spec is None or spec.origin is None:
        raise BuildError(
            "mlx is not installed, expected its headers next to mlx.core; pip install 'mlx[cpu]'"
        )
    return Path(spec.origin).parent / "include"


@functools.cache
def compiler() -> Compiler:
    """The C++ compiler: $CXX, else g++, else clang++."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
        clang = "clang" in version
        flags = ["-std=c++17", "-O2", "-fPIC", "-fno-exceptions", "-fno-rtti"]
        flags += _processor_flags()
        if clang:
            # Metal's literals are float, and its half rounds after every operation.
            flags += [
                "-Xclang",
                "-cl-single-precision-constant",
                "-Xclang",
                "-ffloat16-excess-precision=none",
            ]
            flags += ["-Wno-unknown-attributes", "-Wno-ignored-attributes", "-Wno-user-defined-literals"]
            flags += ["-Wno-reserved-user-defined-literal"]
        else:
            flags += ["-fsingle-precision-constant", "-fexcess-precision=16"]
            flags += ["-Wno-attributes", "-Wno-literal-suffix"]
        return Compiler(path, version.splitlines()[0], clang, tuple(flags))
    raise BuildError("no C++ compiler: tried $CXX, g++ and clang++; install one (Debian: apt install g++)")


def _check_flags(tool: Compiler) -> list[str]:
    """Only the sanitizers' instrumentation; runtime/hooks.cpp has what it calls."""
    flags = ["-g", "-DPROOF_CHECK", "-fsanitize=thread", "-fsanitize=bounds,integer-divide-by-zero"]
    # clang leaves out the read of `y[i] += 1`, which no race needs but an uninitialised read does.
    return [*flags, "-mllvm", "-tsan-instrument-read-before-write=1"] if tool.clang else flags


def _run(command: list[str], text: str | None = None) -> str:
    done = subprocess.run(command, input=text, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{Path(command[0]).name} failed:\n{done.stderr.strip()}")
    return done.stdout


def _key(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:24]


def _install(path: Path, make: list[list[str]], texts: list[str | None], folder: str) -> Path:
    """Runs the commands, the last of which writes `out.so` in `folder`; renames it, so that no half-written
    library is ever found by another process."""
    for command, text in zip(make, texts, strict=True):
        _run(command, text)
    os.replace(Path(folder) / "out.so", path)
    return path


@functools.cache
def runtime_library() -> Path:
    tool = compiler()
    portable = ["-DPROOF_PORTABLE_SWITCH"] if os.environ.get("DSV4_MLX_PROOF_PORTABLE") else []
    command = [tool.path, *tool.flags, *PLAIN.flags(), *portable, "-g", f"-I{_HERE / 'runtime'}"]
    texts = [_run([*command, "-E", str(source)]) for source in _RUNTIME_SOURCES]
    path = cache_folder() / f"runtime-{_key(tool.version, ' '.join(command[1:-1]), *texts)}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            link = [*command, "-shared", *map(str, _RUNTIME_SOURCES), "-o", f"{folder}/out.so"]
            _install(path, [link], [None], folder)
    return path


@dataclass(frozen=True)
class Library:
    """A compiled kernel: `thread` is the address of its entry point."""

    path: Path
    handle: ctypes.CDLL
    thread: int


@functools.cache
def kernel_library(text: str, check: bool, numerics: Numerics = PLAIN) -> Library:
    tool = compiler()
    runtime = runtime_library()
    flags = [*tool.flags, *numerics.flags(), *(_check_flags(tool) if check else [])]
    includes = [f"-I{_HERE / 'include'}", f"-I{_HERE}", f"-I{mlx_include()}"]
    prelude = '#include "msl.h"\n#include "mlx/backend/metal/kernels/utils.h"\n#line 1 "kernel.metal"\n'
    source = _run([tool.path, *flags, *includes, "-E", "-x", "c++", "-"], prelude + text)
    key = _key(tool.version, " ".join(flags), runtime.name, source)
    path = cache_folder() / f"kernel-{key}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            compile_ = [tool.path, *flags, "-x", "c++", "-c", "-", "-o", f"{folder}/out.o"]
            # Linked without the sanitizer flags, or the compiler would add the sanitizers' own libraries.
            link = [
                tool.path,
                "-shared",
                f"{folder}/out.o",
                str(runtime),
                f"-Wl,-rpath,{runtime.parent}",
                "-lm",
            ]
            _install(path, [compile_, [*link, "-o", f"{folder}/out.so"]], [source, None], folder)
    handle = ctypes.CDLL(str(path))
    address = ctypes.cast(handle.proof_thread, ctypes.c_void_p).value
    assert address is not None
    return Library(path, handle, address)
