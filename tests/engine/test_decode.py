"""The decode loop as a conversation: whoever answers its requests, the same tokens come out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from small_model import MARKERS, TINY, new_session, tiny_model, token_ids

from dsv4_mlx.engine import sampler
from dsv4_mlx.engine.chooser import Chooser, GenerationLimits, Score
from dsv4_mlx.engine.constraint import Without
from dsv4_mlx.engine.decode import Drawn, Ended, PrefillProgress, Rows, Token, decode
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import drive, run
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.model.transformer import Transformer

PROMPT = token_ids(np.random.default_rng(19), 30)
THINKING = [*PROMPT, MARKERS.assistant, MARKERS.think]
ENDLESS = {MARKERS.end: -900.0}
ROOM = 24


@dataclass(frozen=True)
class Case:
    """What is asked; a constraint is made anew for each answer."""

    prompt: Sequence[int] = tuple(PROMPT)
    options: SamplingOptions = field(default_factory=lambda: SamplingOptions(seed=5, logit_bias=ENDLESS))
    constrained: bool = False
    logprobs: int | None = None
    think_budget: int | None = None

    @property
    def wanted(self) -> GenerationLimits:
        constraint = Without(range(0, TINY["vocab_size"], 2)) if self.constrained else None
        return GenerationLimits(ROOM, constraint, self.logprobs, self.think_budget)

    def loop(self) -> Generator[Rows | Token, Drawn | None, Ended]:
        choose = Chooser(self.prompt, MARKERS, self.options, self.wanted)
        return decode(choose, ROOM)


PENALTIES = SamplingOptions(
    seed=6, logit_bias=ENDLESS, repetition_penalty=1.2, frequency_penalty=0.5, top_p=0.9
)
CASES = {
    "sampled": Case(),
    "greedy": Case(options=SamplingOptions(temperature=0, logit_bias=ENDLESS)),
    "penalties": Case(options=PENALTIES),
    "constraint": Case(constrained=True),
    "log probabilities": Case(logprobs=3),
    "think budget": Case(tuple(THINKING), think_budget=7),
    "ends itself": Case(options=SamplingOptions(seed=3, logit_bias={MARKERS.end: 6.0})),
}


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def ended(events: Generator[PrefillProgress | Token, None, Ended]) -> tuple[list[Token], Ended]:
    """The tokens, and what ended them."""
    said: list[Token] = []
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return said, end.value
        if isinstance(event, Token):
            said.append(event)


def plain(model: Transformer, case: Case) -> tuple[list[Token], Ended]:
    return ended(run(SessionRows(new_session(model)), case.prompt, case.options, case.wanted))


class Drafting:
    """Answers with several tokens: right drafts, a wrong one, right ones; a row verifies each."""

    def __init__(self, session: Session, truth: Sequence[int], prompt: int, width: int) -> None:
        self.session, self.truth, self.prompt, self.width = session, truth, prompt, width
        self.rounds: list[int] = []  # tokens given in each

    def __call__(self, rows: Rows) -> Generator[PrefillProgress, None, Drawn]:
        session, choose = self.session, rows.choose
        if rows.position == 0:
            yield from session.prefill(rows.tokens)
        else:
            for token in rows.tokens:
                session.advance(token)
        if not rows.count:
            return Drawn(())
        known = len(session.tokens) - self.prompt
        drafts = [*self.truth[known : known + self.width], MARKERS.end][: self.width]
        if len(self.rounds) % 3 == 1 and len(drafts) > 1:
            drafts[1] = (drafts[1] + 1) % TINY["vocab_size"]
        seen = [session.row, *(mx.array(session.advance(draft)) for draft in drafts)]
        drawn: list[tuple[int, Score | None]] = []
        while len(drawn) < min(rows.count, len(seen)) and not choose.over:
            drawn.append(choose.draw(seen[len(drawn)]))
            if [drawn[-1][0]] != drafts[len(drawn) - 1 : len(drawn)]:
                break
        session.take_back(len(session.tokens) - len(choose.tokens) + (not choose.over))
        self.rounds.append(len(drawn))
        return Drawn(drawn)


@pytest.mark.parametrize("name", CASES)
def test_drafts_give_the_tokens_that_one_at_a_time_gives(model: Transformer, name: str) -> None:
    case = CASES[name]
    expected = plain(model, case)
    truth = [token.id for token in expected[0]]
    session = new_session(model)
    drafting = Drafting(session, truth, len(case.prompt), 4)
    assert ended(drive(case.loop(), drafting)) == expected
    assert session.tokens == [*case.prompt, *truth], "what was not used is taken back"
    assert max(drafting.rounds) > 1 and sum(drafting.rounds) == len(truth) + (expected[1] == "stop")


def test_answers_may_come_late_and_for_several_at_once(model: Transformer) -> None:
    """Requests of all loops are gathered, computed in another order, and answered when all are there."""
    cases = list(CASES.values())
    loops = [case.loop() for case in cases]
    sessions = [new_session(model) for _ in cases]
    said: list[list[Token]] = [[] for _ in cases]
    reasons: dict[int, Ended] = {}
    answers: dict[int, Drawn | None] = dict.fromkeys(range(len(cases)))
    while answers:
        asked: dict[int, Rows] = {}
        for i, drawn in answers.items():
            try:
                step = loops[i].send(drawn)
                while isinstance(step, Token):
                    said[i].append(step)
                    step = next(loops[i])
                asked[i] = step
            except StopIteration as end:
                reasons[i] = end.value
        batch: dict[int, mx.array] = {}
        for i, rows in reversed(asked.items()):
            assert list(rows.tokens) == rows.choose.tokens[rows.position :]
            session = sessions[i]
            if rows.position:
                session.feed(*rows.tokens)
            else:
                session.sync(rows.tokens)
            batch[i] = session.row
        answers = {i: Drawn([rows.choose.draw(batch[i])] if rows.count else []) for i, rows in asked.items()}
    assert [(said[i], reasons[i]) for i in range(len(cases))] == [plain(model, case) for case in cases]


def test_running_ahead_costs_a_step_that_is_taken_back(model: Transformer) -> None:
    """The next row is computed before the loop has asked for it; behind a stop it is forgotten."""
    case = CASES["ends itself"]
    session, ahead = new_session(model), 0

    def answer(rows: Rows) -> Generator[PrefillProgress, None, Drawn]:
        nonlocal ahead
        if rows.position == 0:
            yield from session.prefill(rows.tokens)
        assert len(session.tokens) == rows.position + len(rows.tokens), "the row is there already"
        token, score = rows.choose.draw(session.row)
        session.advance(token)
        ahead += 1
        if rows.choose.over:
            session.take_back(1)
        return Drawn([(token, score)])

    said, reason = ended(drive(case.loop(), answer))
    assert (said, reason) == plain(model, case) and reason == "stop"
    assert session.tokens == [*PROMPT, *(token.id for token in said)] and ahead == len(said) + 1


@pytest.mark.parametrize("constrained", (False, True))
def test_the_host_works_while_the_device_does(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, constrained: bool
) -> None:
    """Between the start of a step and the wait for it: the mask for what it gives, the noise for the next."""
    order: list[str] = []
    session = new_session(model)
    feed, settle, made = session.feed, session.settle, sampler.noise
    constraint = Without([3])
    mask = constraint.mask

    def noted(word: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*given: Any) -> Any:
            order.append(word)
            return call(*given)

        return noting

    monkeypatch.setattr(session, "feed", noted("start", feed))
    monkeypatch.setattr(session, "settle", lambda *beside: noted("wait", settle)(*beside) if beside else None)
    monkeypatch.setattr(sampler, "noise", noted("noise", made))
    monkeypatch.setattr(constraint, "mask", noted("mask", mask))
    wanted = GenerationLimits(4, constraint if constrained else None)
    options = SamplingOptions(seed=1, logit_bias=ENDLESS)
    ended(run(SessionRows(session), PROMPT, options, wanted))
    masked = ["mask"] if constrained else []
    assert order[order.index("start") :][: 3 * (3 + len(masked))] == ["start", *masked, "noise", "wait"] * 3


def test_a_loop_without_room_still_takes_the_prompt_in(model: Transformer) -> None:
    session = new_session(model)
    events = run(SessionRows(session), PROMPT, SamplingOptions(), GenerationLimits(0))
    assert ended(events) == ([], "length") and session.tokens == PROMPT


def test_a_chooser_goes_on_only_until_it_is_over() -> None:
    choose = Chooser(PROMPT, MARKERS, SamplingOptions(stop_ids=frozenset({9})), GenerationLimits())
    choose.accept(8)
    choose.accept(9)
    assert choose.over and choose.tokens == [*PROMPT, 8]
    with pytest.raises(RuntimeError, match="over"):
        choose.accept(8)


def test_a_request_wants_an_answer() -> None:
    loop = CASES["greedy"].loop()
    next(loop)
    with pytest.raises(RuntimeError, match="wants an answer"):
        next(loop)
