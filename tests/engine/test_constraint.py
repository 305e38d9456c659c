"""The decode loop under a constraint."""

from __future__ import annotations

import numpy as np
import pytest
from small_model import MARKERS, new_session, tiny_model, token_ids

from dsv4_mlx.engine.constraint import AfterThinking, Constraint, Mask, Without
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.errors import InputError
from dsv4_mlx.model.transformer import Transformer

PROMPT = token_ids(np.random.default_rng(9), 40)


class Only:
    """The tokens of a list, in order, then the end."""

    def __init__(self, tokens: list[int]) -> None:
        self.left = list(tokens)

    @property
    def finished(self) -> bool:
        return not self.left

    def mask(self, size: int) -> Mask:
        mask = np.zeros(size, np.bool_)
        mask[self.left[0] if self.left else MARKERS.end] = True
        return mask

    def accept(self, token: int) -> None:
        if not self.left or token != self.left.pop(0):
            raise InputError("not this one")

    def fork(self) -> Only:
        return Only(self.left)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def said(model: Transformer, constraint: Constraint, **options: object) -> list[int]:
    sampling = SamplingOptions(seed=4, **options)  # type: ignore[arg-type]
    return list(generate(new_session(model), PROMPT, sampling, max_tokens=30, constraint=constraint))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 0}, {"temperature": 0.001}, {"top_k": 1}, {"top_k": 50}, {"top_p": 0.01},
     {"min_p": 1.0}, {"repetition_penalty": 2.0, "presence_penalty": 1.0}, {"logit_bias": {300: 900.0}}],
    ids=str,
)  # fmt: skip
def test_only_allowed_tokens_come_whatever_the_sampling(
    model: Transformer, options: dict[str, object]
) -> None:
    assert said(model, Only([17, 201, 17]), **options) == [17, 201, 17]


def test_what_is_left_out_never_comes(model: Transformer) -> None:
    left_out = range(MARKERS.end, 380)
    assert set(said(model, Without(left_out))) <= {0, *range(380, 384)}


def test_thinking_comes_first(model: Transformer) -> None:
    constraint = AfterThinking(Only([30, 31]), MARKERS.end_think, [MARKERS.end])
    tokens = said(model, constraint, logit_bias={MARKERS.end_think: 4.0, MARKERS.end: 900.0})
    at = tokens.index(MARKERS.end_think)
    assert tokens[at + 1 :] == [30, 31]
    assert constraint.finished and not constraint.thinking


def test_a_constraint_that_allows_all_changes_nothing(model: Transformer) -> None:
    free = list(generate(new_session(model), PROMPT, SamplingOptions(seed=4), max_tokens=30))
    assert said(model, Without([])) == free
