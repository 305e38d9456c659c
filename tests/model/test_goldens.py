"""`exact` logits against transformers' DeepseekV4ForCausalLM in float32, through files and converter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from checkpoints import Checkpoints, decode, run
from compare import assert_logits
from oracle import goldens

PROMPTS = [(name, i) for name in goldens.names() for i in range(len(goldens.load(name).prompts))]
Note = Callable[[str, object], None]


def test_there_are_enough_checkpoints() -> None:
    assert len(goldens.names()) >= 4


@pytest.mark.parametrize(("name", "number"), PROMPTS)
def test_prefill(checkpoints: Checkpoints, name: str, number: int, record_property: Note) -> None:
    prompt = goldens.load(name).prompts[number]
    logits = run(checkpoints.model(name), prompt.tokens)
    record_property("largest difference, std", f"{assert_logits(logits, prompt):.1e}")


@pytest.mark.parametrize(("name", "number"), PROMPTS)
def test_decode(checkpoints: Checkpoints, name: str, number: int, record_property: Note) -> None:
    """A prefill of the first tokens, every other token by itself."""
    prompt = goldens.load(name).prompts[number]
    logits = decode(checkpoints.model(name), prompt.tokens, prompt.split)
    record_property("largest difference, std", f"{assert_logits(logits, prompt):.1e}")


@pytest.mark.parametrize("name", ["topk", "awkward"])
def test_awkward_chunks(checkpoints: Checkpoints, name: str) -> None:
    prompt = goldens.load(name).prompts[0]
    assert_logits(run(checkpoints.model(name), prompt.tokens, range(37, 600, 37)), prompt)


@pytest.mark.parametrize("name", ["topk", "awkward"])
def test_plain_floats(checkpoints: Checkpoints, name: str) -> None:
    """The weights as float32 arrays: what is trained is what is run."""
    prompt = goldens.load(name).prompts[-1]
    assert_logits(decode(checkpoints.float_model(name), prompt.tokens, prompt.split), prompt)
