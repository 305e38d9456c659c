"""How to choose tokens, from a request's fields.

Whether and how much to think, from the many words clients have for it.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, Literal

from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.server.api_errors import invalid
from dsv4_mlx.server.protocols.fields import Body, number, object_of, whole
from dsv4_mlx.tokenizer.template import Level, Think

SEEDS = 1 << 63


def sampling(
    body: Body, *, thinking: bool, mode: Literal["client", "deepseek"], vocabulary: int
) -> SamplingOptions:
    """The client's values where it gives them, else the checkpoint's own: temperature 1, no cut.

    mode "deepseek": while thinking, only seed and logit_bias are the client's. Raises ApiError 400.
    """
    free = SamplingOptions(
        temperature=number(body, "temperature", 0, 2, SamplingOptions.temperature),
        top_p=max(number(body, "top_p", 0, 1, SamplingOptions.top_p), 1e-9),  # 0: the likeliest token alone
        top_k=max(whole(body, "top_k", -1, 1 << 31, SamplingOptions.top_k) or 0, 0),  # -1: all, elsewhere
        min_p=number(body, "min_p", 0, 1, SamplingOptions.min_p),
        repetition_penalty=number(body, "repetition_penalty", 0.01, 100, SamplingOptions.repetition_penalty),
        presence_penalty=number(body, "presence_penalty", -2, 2, SamplingOptions.presence_penalty),
        frequency_penalty=number(body, "frequency_penalty", -2, 2, SamplingOptions.frequency_penalty),
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
    given = object_of(body, "logit_bias")
    found: dict[int, float] = {}
    for token in given:
        if not token.isascii() or not token.isdigit() or len(token) > 9 or int(token) >= vocabulary:
            raise invalid(
                f"logit_bias names {token[:40]!r}, expected a token id below {vocabulary}", "logit_bias"
            )
        found[int(token)] = number(given, token, -100, 100, 0.0)
    return found


# The hosted API's map; "none" is not a level but a wish not to think.
LEVELS: dict[str, Level] = {
    "minimal": "low",
    "low": "low",
    "medium": "high",
    "high": "high",
    "xhigh": "high",
    "max": "max",
    "ultra": "max",
}
_ALIASES = {"deepseek-chat": False, "deepseek-reasoner": True}  # model names that say it


@dataclass(frozen=True)
class ThinkingOptions:
    """`level` None: no thinking. `budget`: tokens after which the end of the thinking is forced."""

    level: Level | None
    budget: int | None = None
    shown: bool = True  # whether the client wants to see it

    @property
    def on(self) -> bool:
        return self.level is not None


def resolve(body: Body, default: Think) -> ThinkingOptions:
    """Explicit switches win over effort "none", that over the model's name, that over the server's default.

    Takes Chat Completions, Responses and Messages bodies alike: their words don't collide. Raises ApiError.
    """
    template, reasoning, output = (
        object_of(body, name) for name in ("chat_template_kwargs", "reasoning", "output_config")
    )
    effort = next(
        (
            given
            for given in (
                body.get("reasoning_effort"),
                reasoning.get("effort"),
                output.get("effort"),
                template.get("reasoning_effort"),
            )
            if given is not None
        ),
        None,
    )
    if effort is not None and (not isinstance(effort, str) or effort not in LEVELS and effort != "none"):
        raise invalid(
            f"the effort is {effort!r}, expected one of none, {', '.join(LEVELS)}", "reasoning_effort"
        )
    on = _switch(body, template, reasoning)
    if on is None and effort is not None:
        on = effort != "none"
    if on is None:
        on = _ALIASES.get(str(body.get("model")))
    if on is None:
        on = default != "off"
    shown = body.get("include_reasoning") is not False and reasoning.get("exclude") is not True
    if not on:
        return ThinkingOptions(None, shown=shown)
    usual: Level = "max" if default == "max" else "high"
    level = usual if effort in (None, "none") else LEVELS[str(effort)]
    return ThinkingOptions(level, _budget(body), shown)


def _switch(body: Body, template: Body, reasoning: Body) -> bool | None:
    thinking = body.get("thinking")
    if isinstance(thinking, dict):
        kind = thinking.get("type")
        if kind not in ("enabled", "disabled", "adaptive", None):
            raise invalid(f"thinking.type is {kind!r}, expected enabled, disabled or adaptive", "thinking")
        if kind is not None:
            return bool(kind != "disabled")
    elif isinstance(thinking, bool):
        return thinking
    elif thinking is not None:
        raise invalid(f"thinking is {str(thinking)[:40]!r}, expected an object with a type", "thinking")
    switches: tuple[Any, ...] = (
        body.get("enable_thinking"),
        body.get("think"),
        template.get("enable_thinking"),
        template.get("thinking"),
        reasoning.get("enabled"),
    )
    return next((bool(given) for given in switches if given is not None), None)


def _budget(body: Body) -> int | None:
    thinking = body.get("thinking")
    given = thinking if isinstance(thinking, dict) else {"budget_tokens": body.get("thinking_token_budget")}
    budget = whole(given, "budget_tokens", 0, 1 << 31)
    return budget
