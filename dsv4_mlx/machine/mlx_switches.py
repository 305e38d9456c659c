"""Float32 products stay float32: MLX on an M5 rounds their inputs to 10 bits (TF32) unless it is told not to.

The one place that sets switches of MLX. MLX reads this one at its first product and never again; child
processes inherit it.
"""

from __future__ import annotations

import os
import sys
import warnings

from dsv4_mlx.errors import Dsv4Warning

VARIABLE = "MLX_ENABLE_TF32"

LATE = "mlx.core" in sys.modules and VARIABLE not in os.environ  # MLX may have multiplied before this
os.environ.setdefault(VARIABLE, "0")


def setting() -> str:
    """The switch as MLX finds it in this process's children, and here if it came in time."""
    return os.environ.get(VARIABLE, "")


def every_setting() -> dict[str, str]:
    """All switches of MLX, as its children find them."""
    return {name: value for name, value in os.environ.items() if name.startswith("MLX_")}


def warn_if_late() -> None:
    """Warn, where it matters (Metal), if MLX was there before this package: what it has read is not known."""
    if LATE:
        warnings.warn(
            "MLX was imported before dsv4_mlx: if it has multiplied by then, float32 products keep 10 bits "
            f"on an M5\n  next: import dsv4_mlx first, or set {VARIABLE}=0 before Python starts",
            Dsv4Warning,
            stacklevel=1,  # one place: it is shown once
        )
