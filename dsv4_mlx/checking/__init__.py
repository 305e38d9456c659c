"""Whether kernels can be trusted on this machine: each is tried against its reference, in another process."""

from dsv4_mlx.checking.choose import Choice, choose
from dsv4_mlx.checking.verdict import Metal, Verdict

__all__ = ["Choice", "Metal", "Verdict", "choose"]
