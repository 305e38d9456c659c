"""The proof machine: executes, checks and parses Metal kernels on a Linux CPU. See docs/proof-machine.md."""

from proof.arrays import Array, BFloat16, Dtype, from_mlx, to_mlx
from proof.build import BuildError, cache_folder
from proof.findings import Finding
from proof.machine import Kernel, Result, run
from proof.parse import parse
from proof.signature import ArrayType

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
