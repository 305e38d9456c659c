"""How to choose tokens, from a request's fields."""

from __future__ import annotations

import secrets
from typing import Literal

from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.server.api_errors import invalid
from dsv4_mlx.server.protocols.body import Body
from dsv4_mlx.server.protocols.fields import number, record, whole

SEEDS = 1 << 63


def sampling(
    body: Body, *, thinking: bool, mode: Literal["client", "deepseek"], vocabulary: int
) -> SamplingOptions:
    """The client's values where it gives them, else the checkpoint's own: temperature 1, no cut.

    mode "deepseek": while thinking, only seed and logit_bias are the client's. Raises Refusal 400.
    """
    free = SamplingOptions(
        temperature=number(body, "temperature", 0, 2, 1.0),
        top_p=max(number(body, "top_p", 0, 1, 1.0), 1e-9),  # 0: the likeliest token alone
        top_k=max(whole(body, "top_k", -1, 1 << 31, 0) or 0, 0),  # -1: all, as other servers spell it
        min_p=number(body, "min_p", 0, 1, 0.0),
        repetition_penalty=number(body, "repetition_penalty", 0.01, 100, 1.0),
        presence_penalty=number(body, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=number(body, "frequency_penalty", -2, 2, 0.0),
        logit_bias=_bias(body, vocabulary),
        seed=_seed(body),
    )
    if mode == "deepseek" and thinking:
        return SamplingOptions(logit_bias=free.logit_bias, seed=free.seed)
    return free


def _seed(body: Body) -> int:
    seed = whole(body, "seed", -(1 << 64), 1 << 64)
    return secrets.randbelow(SEEDS) if seed is None else seed % SEEDS


def _bias(body: Body, vocabulary: int) -> dict[int, float]:
    given = record(body, "logit_bias")
    found: dict[int, float] = {}
    for token in given:
        if not token.isascii() or not token.isdigit() or len(token) > 9 or int(token) >= vocabulary:
            raise invalid(
                f"logit_bias names {token[:40]!r}, expected a token id below {vocabulary}", "logit_bias"
            )
        found[int(token)] = number(given, token, -100, 100, 0.0)
    return found
