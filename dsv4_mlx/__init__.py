"""DeepSeek V4 Flash on Apple silicon."""

from pathlib import Path as _Path

from dsv4_mlx.machine import mlx_switches as _mlx_switches  # noqa: F401 - before MLX computes anything

__version__ = "0.1.0"

# A wheel carries convert/ and metal/ inside this package; a checkout keeps them beside it, and links to them.
if not (_Path(__file__).parent / "convert").is_dir():
    raise ImportError(
        f"{_Path(__file__).parent / 'convert'} is not a folder: this copy of dsv4-mlx has lost its symbolic "
        "links, which some programs that unpack a zip do not make. Get it with git clone, or use unzip"
    )
