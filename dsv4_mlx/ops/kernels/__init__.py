"""Metal kernels: sources in metal/, a wrapper a file here with the signature of its reference.

A wrapper knows no reference: what it computes is compared with it from outside, by tests and on the user's
machine, over the cases it names.
"""

from dsv4_mlx.ops.kernels import (
    attend,
    compress,
    expert_ffn,
    group_project,
    hc_head,
    hc_post,
    hc_pre,
    index_select,
    latents,
    project,
    query_heads,
    route,
    shared_ffn,
)

ALL = (
    hc_pre.OP,
    hc_post.OP,
    hc_head.OP,
    latents.OP,
    query_heads.OP,
    project.OP,
    compress.OP,
    index_select.OP,
    attend.OP,
    group_project.OP,
    route.OP,
    route.HASHED,
    shared_ffn.OP,
    expert_ffn.OP,
)

__all__ = ["ALL"]
