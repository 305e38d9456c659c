"""Metal kernels: sources in metal/, a wrapper a file here with the signature of its reference.

A wrapper knows no reference: what it computes is compared with it from outside, by tests and on the user's
machine, over the cases it names.
"""

from dsv4_mlx.kernels import attend, expert_ffn, group_project, hc_post, index_select, shared_ffn

ALL = (attend.OP, expert_ffn.OP, group_project.OP, hc_post.OP, index_select.OP, shared_ffn.OP)

__all__ = ["ALL"]
