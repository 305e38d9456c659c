"""Metal kernels: sources in metal/, a wrapper a file here with the signature of its reference.

A wrapper knows no reference: what it computes is compared with it from outside, by tests and on the user's
machine, over the cases it names.
"""

from dsv4_mlx.kernels import (
    attend,
    compress,
    expert_ffn,
    group_project,
    hc_post,
    index_select,
    latents,
    query_heads,
    shared_ffn,
)

ALL = (
    hc_post.OP,
    latents.OP,
    query_heads.OP,
    compress.OP,
    index_select.OP,
    attend.OP,
    group_project.OP,
    expert_ffn.OP,
    shared_ffn.OP,
)

__all__ = ["ALL"]
