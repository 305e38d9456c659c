"""What can be asked of an engine and of its sampling: the only place of these defaults, light to import."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from dsv4_mlx.errors import UsageError

if TYPE_CHECKING:
    from dsv4_mlx.ops.table import Ops

NEVER = -1000.0  # added to a logit: the token can't be drawn


def _reference() -> Ops:
    from dsv4_mlx.ops.table import REFERENCE  # and MLX with it

    return REFERENCE


@dataclass(frozen=True)
class EngineOptions:
    """How to open a model. context None: the largest that fits, at most 131072."""

    context: int | None = None
    numerics: Literal["official", "exact"] = "official"
    ops: Ops = field(default_factory=_reference)  # ops.selftest.choose finds those to trust on a machine
    expert_memory: str = "auto"  # as `--expert-memory`: paging/sizing.py
    expert_threads: int | None = None  # that read experts; None: as many as a short measurement finds best
    verify_reads: bool = False  # compare every expert that is read with its SHA-256
    wire: Literal["auto", "off"] = "auto"  # on a Mac, whether the model's memory may not be paged out


@dataclass(frozen=True)
class SamplingOptions:
    """How to choose tokens, and when to stop. The defaults are the checkpoint's own: temperature 1, no cut.

    Order: logit_bias, penalties (repetition, presence, frequency), temperature, top_k, top_p, min_p.
    temperature 0 takes the largest logit (a tie: the smallest id).

    repetition_penalty divides a positive logit and multiplies a negative one, for every token of the prompt
    and the answer. presence_penalty is taken once, frequency_penalty once per occurrence, from the logits of
    tokens of the answer only: a long prompt would drown every common word.

    stop_ids end the turn like the end of sentence. stop_strings end it when the answer (not the thinking)
    contains one, however it is cut into tokens. Neither is part of the answer. Raises UsageError.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all
    min_p: float = 0.0  # least share of the likeliest token's probability
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= 100, "temperature", self.temperature, "0 to 100")
        _require(0 < self.top_p <= 1, "top-p", self.top_p, "above 0, up to 1")
        _require(self.top_k >= 0, "top-k", self.top_k, "0 (all) or more")
        _require(0 <= self.min_p <= 1, "min-p", self.min_p, "0 to 1")
        factor = self.repetition_penalty
        _require(0.01 <= factor <= 100, "repetition-penalty", factor, "0.01 to 100")
        _require(abs(self.presence_penalty) <= 100, "presence-penalty", self.presence_penalty, "-100 to 100")
        _require(
            abs(self.frequency_penalty) <= 100, "frequency-penalty", self.frequency_penalty, "-100 to 100"
        )
        for token, bias in self.logit_bias.items():
            _require(abs(bias) <= 1000, f"logit-bias of token {token}", bias, "-1000 to 1000")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        _require("" not in self.stop_strings, "stop", "an empty text", "at least one character")

    def check(self, vocabulary: int) -> None:
        """Raises UsageError for a token id that a model of this many tokens has not."""
        for name, ids in (("logit-bias", self.logit_bias), ("stop-id", self.stop_ids)):
            for token in sorted(ids):
                _require(0 <= token < vocabulary, name, f"for token {token}", f"an id below {vocabulary}")

    def without(self, token: int) -> SamplingOptions:
        """The same, but `token` is never drawn; a negative id names none."""
        return self if token < 0 else replace(self, logit_bias={**self.logit_bias, token: NEVER})


def _require(true: bool, name: str, found: object, expected: str) -> None:
    if not true:
        raise UsageError(f"{name} is {found}, expected {expected}")
