"""What can be asked of an engine and of its sampling: the only place of these defaults, light to import."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
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
    """How to open a model. context None: the largest that fits, at most 131072. Raises UsageError."""

    context: int | None = None
    numerics: Literal["official", "exact"] = "official"
    ops: Ops = field(default_factory=_reference)  # ops.selftest.choose finds those to trust on a machine
    expert_memory: str = "auto"  # as `--expert-memory`: paging/sizing.py
    expert_threads: int | None = None  # that read experts; None: as many as a short measurement finds best
    verify_reads: bool = False  # compare every expert that is read with its SHA-256
    wire: Literal["auto", "off"] = "auto"  # on a Mac, whether the model's memory may not be paged out

    def __post_init__(self) -> None:
        _require(self.context is None or _whole(self.context), "context", self.context, "a number of tokens")
        for name, words in (("numerics", ("official", "exact")), ("wire", ("auto", "off"))):
            word = getattr(self, name)
            _require(isinstance(word, str) and word in words, name, repr(word), " or ".join(map(repr, words)))
        memory, threads = self.expert_memory, self.expert_threads
        _require(isinstance(memory, str), "expert-memory", memory, "'auto', or such as '24GB', '25%', '6x'")
        few = threads is None or (_whole(threads) and 1 <= threads <= 64)
        _require(few, "expert-threads", threads, "1 to 64")
        _require(isinstance(self.verify_reads, bool), "verify-reads", self.verify_reads, "True or False")


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
        self._check_types()
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

    def _check_types(self) -> None:
        whole = {"top-k": self.top_k, "seed": self.seed}
        for name, value in whole.items():
            _require(_whole(value), name, value, "a whole number")
        numbers: dict[str, float] = {
            "temperature": self.temperature, "top-p": self.top_p, "min-p": self.min_p,
            "repetition-penalty": self.repetition_penalty, "presence-penalty": self.presence_penalty,
            "frequency-penalty": self.frequency_penalty,
        }  # fmt: skip
        for name, number in numbers.items():
            _require(_number(number), name, number, "a number")
        biases, ids, strings = self.logit_bias, self.stop_ids, self.stop_strings
        pairs = isinstance(biases, Mapping) and all(_whole(k) and _number(v) for k, v in biases.items())
        _require(pairs, "logit-bias", biases, "a dict of token ids and numbers")
        listed = isinstance(ids, Collection) and not isinstance(ids, str) and all(map(_whole, ids))
        _require(listed, "stop-ids", ids, "a set of token ids")
        texts = isinstance(strings, Collection) and not isinstance(strings, str)
        _require(texts and all(isinstance(one, str) for one in strings), "stop", strings, "a list of texts")
        object.__setattr__(self, "stop_ids", frozenset(ids))
        object.__setattr__(self, "stop_strings", tuple(strings))

    def check(self, vocabulary: int) -> None:
        """Raises UsageError for a token id that a model of this many tokens has not."""
        for name, ids in (("logit-bias", self.logit_bias), ("stop-id", self.stop_ids)):
            for token in sorted(ids):
                _require(0 <= token < vocabulary, name, f"for token {token}", f"an id below {vocabulary}")

    def without(self, token: int) -> SamplingOptions:
        """The same, but `token` is never drawn; a negative id names none."""
        return self if token < 0 else replace(self, logit_bias={**self.logit_bias, token: NEVER})


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _require(true: bool, name: str, found: object, expected: str) -> None:
    if not true:
        raise UsageError(f"{name} is {found}, expected {expected}")
