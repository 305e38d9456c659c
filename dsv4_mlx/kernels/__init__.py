"""Metal kernels: sources in metal/, a wrapper a file here with the signature of its reference.

A wrapper knows no reference: what it computes is compared with it from outside, by tests and on the user's
machine, over the cases it names.
"""

from dsv4_mlx.kernels import hc_post

ALL = (hc_post.OP,)

__all__ = ["ALL"]
