"""MLX's switches, set before MLX is imported: it reads each once, and child processes inherit them.

MLX_ENABLE_TF32: float32 products stay float32. MLX on an M5 rounds their inputs to 10 bits unless told not
to.

MLX_MAX_OPS_PER_BUFFER, MLX_MAX_MB_PER_BUFFER: where MLX ends a command buffer. Its own bounds end one after
each product with experts, whose whole bank counts: 94 a decoded token. With 110 operations and no other bound
it is 7 to 15, of every release at every context; the GPU waits while the first is encoded, and more
operations would make it wait longer. What a prefill holds is then bounded by model.transformer.one_behind.
Counted: docs/ledger.md.

The user's own values win.
"""

from __future__ import annotations

import os
import sys
import warnings

from dsv4_mlx.errors import Dsv4Warning, UsageError

VARIABLE = "MLX_ENABLE_TF32"
REPLAY_OFF = "MLX_DISABLE_COMPILE"
OPERATIONS, ELEMENTS = 110, 1 << 20  # a command buffer's operations, and 2^20 elements of its arrays
SWITCHES = {VARIABLE: 0, "MLX_MAX_OPS_PER_BUFFER": OPERATIONS, "MLX_MAX_MB_PER_BUFFER": ELEMENTS}
_LARGEST = 2**31 - 1  # MLX keeps each in an int

LATE = "mlx.core" in sys.modules and VARIABLE not in os.environ  # MLX may have multiplied before this
for _name, _value in SWITCHES.items():
    os.environ.setdefault(_name, str(_value))


def setting() -> str:
    """The switch as MLX finds it in this process's children, and here if it came in time."""
    return os.environ.get(VARIABLE, "")


def replay_is_off() -> bool:
    """Whether the environment has MLX compile nothing: every step is then built anew by Python."""
    return REPLAY_OFF in os.environ


def settings() -> dict[str, str]:
    """Every switch that is set here, likewise."""
    return {name: os.environ.get(name, "") for name in SWITCHES}


def check() -> None:
    """Raises UsageError for a value that MLX would read as another: it takes what is no number for 0."""
    for name, value in settings().items():
        least, most = (0, 1) if name == VARIABLE else (1, _LARGEST)
        known = value.isascii() and value.isdigit() and len(value) <= len(str(_LARGEST))
        if not (known and least <= int(value) <= most):
            raise UsageError(
                f"{name} is {value!r} in the environment, expected {least} to {most}",
                next=f"unset {name}: {SWITCHES[name]} is then used",
            )


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
