"""--ops as given -> the ops a model computes with."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from dsv4_mlx.cli.console import progress
from dsv4_mlx.cli.options import OpsMode, verdicts_file

if TYPE_CHECKING:
    from dsv4_mlx.ops.table import Ops


def chosen(mode: OpsMode, *, plain: bool = False) -> Ops:
    """Kernels that are trusted on this machine; the first time they are checked, which takes seconds.

    What was replaced by its reference is said on stderr. `plain` as in `progress`.
    """
    from dsv4_mlx.ops.selftest.choose import choose

    with progress("checking Metal kernels, once", "kernels", plain=plain) as show:
        choice = choose(mode.value, verdicts_file(), progress=show)
    if choice.message is not None:
        print(f"warning: {choice.message}", file=sys.stderr)
    return choice.ops
