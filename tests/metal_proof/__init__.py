"""The emulator: executes, checks and parses Metal kernels on a Linux CPU. See README.md here."""

from metal_proof.arrays import Array, BFloat16, Dtype, from_mlx, to_mlx
from metal_proof.build import BuildError, Numerics, cache_folder
from metal_proof.findings import Finding
from metal_proof.launch import flushed
from metal_proof.machine import Kernel, Result, run
from metal_proof.parse import parse
from metal_proof.signature import ArrayType

__all__ = [
    "Array",
    "ArrayType",
    "BFloat16",
    "BuildError",
    "Dtype",
    "Finding",
    "Kernel",
    "Numerics",
    "Result",
    "cache_folder",
    "flushed",
    "from_mlx",
    "parse",
    "run",
    "to_mlx",
]
