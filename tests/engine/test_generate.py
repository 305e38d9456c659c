"""The main path: tokens out, until something ends it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from checkpoints import Checkpoints
from small_model import MARKERS, new_session, tiny_model, token_ids
from tokenizers import Tokenizer

from dsv4_mlx.engine.chooser import GenerationLimits
from dsv4_mlx.engine.decode import Ended, Finished, PrefillProgress, Token
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import answer, complete, generate, stream
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.errors import DoesNotFit
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.tokenizer.output_parser import Piece
from dsv4_mlx.tokenizer.template import THINK, Spelling, Think

PROMPT = token_ids(np.random.default_rng(9), 40)
GREEDY = SamplingOptions(temperature=0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def test_greedy_takes_the_largest_logit_each_time(model: Transformer) -> None:
    found = list(generate(new_session(model), PROMPT, GREEDY, max_tokens=12))
    session, expected = new_session(model), []
    logits = session.sync(PROMPT)
    for _ in range(12):
        expected.append(int(np.argmax(logits)))
        logits = session.advance(expected[-1])
    assert found == expected


def test_a_seed_decides_the_tokens(model: Transformer) -> None:
    def tokens(seed: int) -> list[int]:
        return list(generate(new_session(model), PROMPT, SamplingOptions(seed=seed), max_tokens=20))

    assert tokens(3) == tokens(3)
    assert tokens(3) != tokens(4)


def test_tokens_continue_where_a_shorter_run_stopped(model: Transformer) -> None:
    """Draws go by position: asking in two parts gives the same as asking once."""
    options = SamplingOptions(seed=8)
    whole = list(generate(new_session(model), PROMPT, options, max_tokens=15))
    session = new_session(model)
    first = list(generate(session, PROMPT, options, max_tokens=6))
    assert first + list(generate(session, PROMPT + first, options, max_tokens=9)) == whole


def test_end_of_sentence_stops_and_is_left_out(model: Transformer) -> None:
    always = SamplingOptions(temperature=0, logit_bias={MARKERS.end: 900.0})
    assert list(generate(new_session(model), PROMPT, always)) == []
    never = SamplingOptions(seed=1, logit_bias={MARKERS.end: -900.0})
    assert len(list(generate(new_session(model), PROMPT, never, max_tokens=30))) == 30


def test_the_context_ends_an_answer(model: Transformer) -> None:
    never = SamplingOptions(seed=1, logit_bias={MARKERS.end: -900.0})
    session = new_session(model, context=50)
    assert len(list(generate(session, PROMPT, never))) == 10
    with pytest.raises(DoesNotFit):
        list(generate(session, PROMPT * 2, never))


ENDINGS = [(900.0, 5, "stop"), (-900.0, 5, "length"), (-900.0, None, "length")]


@pytest.mark.parametrize(("bias", "most", "reason"), ENDINGS)
def test_the_events_of_an_answer(model: Transformer, bias: float, most: int | None, reason: str) -> None:
    session = new_session(model, context=50)
    session.sync(PROMPT[:30])
    options = SamplingOptions(temperature=0, logit_bias={MARKERS.end: bias})
    *events, last = stream(SessionRows(session), PROMPT, options, GenerationLimits(most))
    said = {"stop": 0, "length": 10 if most is None else most}[reason]
    assert events[:2] == [PrefillProgress(0, 10, 30), PrefillProgress(10, 10, 30)]
    assert [type(event) for event in events[2:]] == [Token] * said
    assert isinstance(last, Finished) and last.reason == reason


@pytest.mark.parametrize("most", [5, None])
def test_an_answer_tells_whether_a_limit_cut_it(engine: Engine, most: int | None) -> None:
    """By max_tokens or by the context."""
    told: list[Ended] = []

    def ask(bias: float) -> Iterator[Piece]:
        session = Session(engine.model, 64, markers)
        options = SamplingOptions(seed=1, logit_bias={markers.end: bias})
        told.append((yield from answer(engine, session, "Why?", "off", options, max_tokens=most)))

    markers = engine.prompts.markers
    for bias in (-900.0, 900.0):
        list(ask(bias))
    assert told == ["length", "stop"]


def test_the_caller_can_stop(model: Transformer) -> None:
    session = new_session(model)
    tokens = generate(session, PROMPT, SamplingOptions(seed=1), max_tokens=100)
    first = [next(tokens) for _ in range(3)]
    del tokens
    assert session.tokens[: len(PROMPT) + 2] == PROMPT + first[:2]


@pytest.mark.parametrize("think", THINK)
def test_an_answer_says_what_the_tokens_say(checkpoints: Checkpoints, engine: Engine, think: Think) -> None:
    """All text comes out, in pieces of the right kind: a thinking mode starts with thinking."""
    options = SamplingOptions(seed=2)
    pieces = list(answer(engine, engine.session(), "Why?", think, options, max_tokens=30))
    prompt = engine.prompts.encode(engine.prompts.ask("Why?", think))
    undrawn = options.without(engine.prompts.spelling.dsml)
    ids = list(generate(engine.session(), prompt, undrawn, max_tokens=30))
    assert pieces and pieces[0].kind == ("answer" if think == "off" else "thinking")
    said = "".join(piece.text for piece in pieces)
    whole = Tokenizer.from_file(str(checkpoints.converted("small") / "tokenizer.json"))
    markers = {engine.prompts.markers.end_think, *engine.prompts.spelling.control}
    expected = whole.decode([i for i in ids if i not in markers], skip_special_tokens=False)
    assert said.replace("\ufffd", "") == expected.replace("\ufffd", "")


def test_a_text_is_gone_on_with(checkpoints: Checkpoints, engine: Engine) -> None:
    """Begin of text, the text, nothing else; markers that it spells are no markers."""
    spelling = Spelling(checkpoints.converted("small"))
    text, options = "Once <｜User｜> upon\n", SamplingOptions(seed=3)
    prompt = spelling.begun(text)
    assert prompt[1:] == spelling.encode(text) and spelling.decode(prompt[1:]) == text
    assert prompt[0] == spelling.id("<｜begin▁of▁sentence｜>")
    assert spelling.id("<｜User｜>") not in prompt
    said = [piece.text for piece in complete(engine, engine.session(), text, options, max_tokens=30)]
    undrawn = options.without(spelling.dsml)
    ids = [
        id for id in generate(engine.session(), prompt, undrawn, max_tokens=30) if id not in spelling.control
    ]
    whole = "".join(said)
    assert len(said) > 10 and whole == spelling.decode(ids)
    stop = whole[len(whole) // 2 :][:2]
    stopping = SamplingOptions(seed=3, stop_strings=(stop,))
    assert (
        "".join(p.text for p in complete(engine, engine.session(), text, stopping, max_tokens=30))
        == whole.partition(stop)[0]
    )


@pytest.mark.parametrize(
    ("token", "stop", "expected"),
    [
        (None, (), ""),  # a marker is no text
        ("a", ("ab",), "aaa"),  # the last might have begun the stop string
        ("a", ("aa",), ""),
    ],
)
def test_nothing_of_a_text_is_kept_back_and_no_marker_is_in_it(
    token: str | None, stop: tuple[str, ...], expected: str, checkpoints: Checkpoints, engine: Engine
) -> None:
    spelling = Spelling(checkpoints.converted("small"))
    (id,) = [spelling.id("<｜User｜>")] if token is None else spelling.encode(token)
    assert id is not None
    options = SamplingOptions(temperature=0, logit_bias={id: 100.0}, stop_strings=stop)
    said = [piece.text for piece in complete(engine, engine.session(), "Once", options, max_tokens=3)]
    assert "".join(said) == expected


def test_a_text_that_fills_the_context(checkpoints: Checkpoints, engine: Engine) -> None:
    spelling = Spelling(checkpoints.converted("small"))
    text = "a" * (engine.context - 1)
    while missing := engine.context - len(spelling.begun(text)):
        text += "b" * missing
    with pytest.raises(DoesNotFit, match="an answer has no room"):
        list(complete(engine, engine.session(), text, SamplingOptions()))
