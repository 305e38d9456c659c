"""Steps built ahead: the device waits for nobody, and the tokens are those of one step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import mlx.core as mx
import numpy as np
import pytest
from engine.test_decode import CASES, ENDLESS, PROMPT, ROOM, ended, plain
from model.test_step import unfused
from small_model import MARKERS, new_session, tiny_model

from dsv4_mlx.engine.chooser import Chooser, GenerationLimits, PromptScores
from dsv4_mlx.engine.constraint import Mask, Without
from dsv4_mlx.engine.decode import PrefillProgress, Token, decode
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import drive, run
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.model.transformer import Transformer

__all__ = ["unfused"]  # a fixture, used by being here


@pytest.fixture(scope="module")
def models() -> tuple[Transformer, Transformer]:
    """Of the same weights: the second replays."""
    built, replayed = tiny_model(), tiny_model()
    replayed.replays = True
    return built, replayed


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_steps_built_one_by_one(
    models: tuple[Transformer, Transformer], name: str
) -> None:
    case = CASES[name]
    session = new_session(models[1])
    found = ended(run(SessionRows(session), case.prompt, case.options, case.wanted))
    assert found == plain(models[0], case)
    assert session.tokens == [*case.prompt, *(token.id for token in found[0])], "never what stopped it"


@pytest.mark.parametrize("left", range(1, 8))
def test_left_at_any_token_the_session_goes_on_as_another(
    models: tuple[Transformer, Transformer], left: int
) -> None:
    """It is a step further then than what was told; the next prompt may contain that or go elsewhere."""
    case, said = CASES["sampled"], list[int]()
    sessions = [new_session(one) for one in models]
    for session in sessions:
        loop = run(SessionRows(session), case.prompt, case.options, case.wanted)
        said = []
        for event in loop:
            if isinstance(event, Token):
                said.append(event.id)
            if len(said) == left:
                break
        loop.close()
    assert sessions[1].tokens == [*case.prompt, *said]
    for follow in ([*case.prompt, *said, 9, 10], [*case.prompt, *said[:-1], 11]):
        logits = [session.sync(follow) for session in sessions]
        assert np.allclose(logits[0], logits[1], atol=1e-4)


@dataclass
class Clock:
    """A device and its host, in milliseconds. The device does one step after the other."""

    now: float = 0.0
    free: float = 0.0  # when the device will be
    events: list[tuple[str, int]] = field(default_factory=list)

    def work(self, cost: float) -> None:
        self.now += cost


class ScriptedSession:
    """A session whose steps take 20 ms of the device and 10 ms of the host to build."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.tokens, self.context, self.markers = clock, list[int](), 4096, MARKERS
        self.vocabulary, self._built = 384, False

    @property
    def row(self) -> mx.array:
        return mx.array(np.random.default_rng(len(self.tokens)).standard_normal(384).astype(np.float32))

    def prefill(
        self,
        tokens: Sequence[int],
        chunks_per_step: Callable[[], int | None] = lambda: None,
        check_cancelled: Callable[[], None] = lambda: None,
        scores: PromptScores | None = None,
    ) -> Iterator[PrefillProgress]:
        self.tokens = list(tokens)
        yield PrefillProgress(len(tokens), len(tokens), 0)

    def prepare(self, id: mx.array) -> bool:
        self.clock.events.append(("built", len(self.tokens)))
        self.clock.work(10)
        self._built = True
        return True

    def feed(self, token: int) -> mx.array:
        if not self._built:  # the last token, after which none is asked for
            self.clock.work(10)
        assert self.clock.now >= self.clock.free, "begun before the one before has ended: MLX would copy"
        self.clock.events.append(("begun", len(self.tokens)))
        self.clock.free = self.clock.now + 20
        self.tokens.append(token)
        self._built = False
        return self.row

    def settle(self, *beside: mx.array) -> bool:
        self.clock.events.append(("waited", len(self.tokens)))
        self.clock.now = max(self.clock.now, self.clock.free)
        return False


class Slow(Without):
    """A constraint whose mask takes the host 10 ms."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(range(0, 384, 2))
        self.clock = clock

    def mask(self, size: int) -> Mask:
        self.clock.work(10)
        return super().mask(size)


@pytest.mark.parametrize("constrained,most", [(False, 20.6), (True, 30.6)])
def test_a_token_takes_the_devices_time(constrained: bool, most: float) -> None:
    """Ten milliseconds to build, ten for the listener (a mask takes ten more): all beside the device."""
    clock = Clock()
    session = ScriptedSession(clock)
    constraint = Slow(clock) if constrained else None
    choose = Chooser(
        PROMPT, MARKERS, SamplingOptions(seed=5, logit_bias=ENDLESS), GenerationLimits(ROOM, constraint)
    )
    times = []
    for event in drive(decode(choose, ROOM), SessionRows(session)):
        if isinstance(event, Token):
            times.append(clock.now)
            if not constrained:
                clock.work(10)
    assert len(times) == ROOM
    steps = np.diff(times)[1:-1]
    assert steps.max() <= most
    at = len(PROMPT) + 5
    order = [event for event in clock.events if event[1] in (at, at + 1)]
    assert order == [("built", at), ("waited", at), ("begun", at)] + [
        (what, at + 1) for what in ("built", "waited", "begun")
    ]
