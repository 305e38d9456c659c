"""Cases that between them launch all kernels, with masks, indices and rounding: for short runs."""

from __future__ import annotations


def is_short(op: str, case: str) -> bool:
    """Whether a case is for short runs; every case of an op that has no entry here."""
    return op not in SHORT or case in SHORT[op]


SHORT = {
    "attend": ("129 rows in two splits", "many tokens, indexed rows"),
    "index_select": ("33 rows", "129 rows, many seen"),
    "group_project": ("two rows, affine, 4 bits", "33 rows, affine, 4 bits"),
    "expert_ffn": ("two tokens, affine, 4 bits", "33 tokens, added to what is there"),
    "shared_ffn": ("two tokens, affine, 4 bits", "33 tokens, mxfp8"),
    "hc_pre": ("127 channels, two sequences",),
    "hc_post": ("bfloat16 out",),
    "hc_head": ("33 channels, two streams",),
    "latents": ("two sequences of 16 rows, q8",),
    "query_heads": ("31 heads of 64, index queries, q4", "two sequences, heads of 128, q8"),
    "project": ("bias that goes round",),
    "compress": ("csa, first row, q8", "hca, 33 rows"),
    "route": ("31 experts",),
    "route_hashed": ("31 experts",),
}
