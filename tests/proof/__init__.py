"""The proof machine: executes, checks and parses Metal kernels on a Linux CPU. See docs/proof-machine.md."""

from .arrays import Array, BFloat16, Dtype, from_mlx, to_mlx
from .build import BuildError, cache_folder
from .findings import Finding
from .machine import Kernel, Result, run
from .parse import parse
from .signature import ArrayType

__all__ = [
    "Array",
    "ArrayType",
    "BFloat16",
    "BuildError",
    "Dtype",
    "Finding",
    "Kernel",
    "Result",
    "cache_folder",
    "from_mlx",
    "parse",
    "run",
    "to_mlx",
]
