"""DeepSeek V4 Flash on Apple silicon."""

from pathlib import Path as _Path

from dsv4_mlx.machine import mlx_switches as _tf32

__version__ = "0.1.0"

# A wheel carries convert/ and metal/ inside this package; a checkout keeps them beside it.
_checkout = _Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file() and (_checkout / "convert" / "__init__.py").is_file():
    __path__.append(str(_checkout))
