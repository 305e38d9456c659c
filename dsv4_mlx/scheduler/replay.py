"""A model that says what a script says, token by token; its weights are not loaded.

Tokenizer, template, decode loop, sampler, and the accounting of what a session keeps are the real ones: the
script's next token simply has all the probability.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import mlx.core as mx
import numpy as np
from deepseek_recipe import AssistantMessage, Conversation, ToolCall, ToolDefinition, UserMessage

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.decode import Sampled
from dsv4_mlx.engine.generate import steps
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.thinking import thinks
from dsv4_mlx.errors import InputError, MachineError, UsageError
from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.model.state import ModelState, Snapshot
from dsv4_mlx.model.transformer import OneByOne, Transformer
from dsv4_mlx.scheduler.backend import GROWTH, Ended, Pause, Progress, Run, session_limits, wanted
from dsv4_mlx.scheduler.request import Job
from dsv4_mlx.scheduler.script import ScriptedTurn
from dsv4_mlx.scheduler.session_policy import Limits
from dsv4_mlx.scheduler.session_pool import Reusable
from dsv4_mlx.tokenizer.template import Markers, Prompts
from dsv4_mlx.weights.load import find_model

UNLIKELY = -1e6  # the logit of every token but the script's; finite, as a real model's are
MOST_CONTEXT = 1 << 20
ELEMENT = 2  # bytes of a number in the sessions whose memory is accounted for: bfloat16, as on a Mac


class ScriptedModel:
    """What a Session needs of a model. `script`: ids after `prompt` tokens; then `end`, for ever."""

    def __init__(self, config: ModelConfig, script: Sequence[int], prompt: int, end: int) -> None:
        self.config, self._script, self._prompt, self._end = config, list(script), prompt, end
        self._at = 0
        self.loop = OneByOne()

    @property
    def expected(self) -> int:
        """The next token."""
        return self._script[self._at] if self._at < len(self._script) else self._end

    def new_state(self, growth: int) -> ModelState:
        return ModelState(replace(self.config, layers=0, mtp_layers=0), mx.bfloat16, growth=growth)

    def streams_of(
        self, chunks: Sequence[mx.array], state: ModelState, between: Callable[[], None] = lambda: None
    ) -> tuple[list[mx.array], list[Snapshot]]:
        """As Transformer, of one chunk, no layers: `state` counts its tokens. The streams are the tokens."""
        (tokens,) = chunks
        if state.length >= self._prompt:
            self._follow(cast(int, tokens[0, 0].item()))
        rows = tokens.shape[1]
        state.reserve(state.length + rows)
        state.advance(rows)
        return [tokens], []

    def logits(self, streams: mx.array, *, last: bool) -> mx.array:
        """float32 [1, 1, V] after the tokens so far."""
        logits = np.full((1, 1, self.config.vocab_size), UNLIKELY, np.float32)
        logits[0, 0, self.expected] = 0
        return mx.array(logits)

    def _follow(self, token: int) -> None:
        """A token that was forced may skip part of the script, such as the rest of a thinking."""
        if token in self._script[self._at :]:
            self._at = self._script.index(token, self._at) + 1


class ReplayBackend:
    """Takes one turn of the script per job, in order, and after the last the first again."""

    def __init__(self, folder: Path, turns: Sequence[ScriptedTurn], context: int | None = None) -> None:
        self._folder, self._turns, self._asked = folder, list(turns), context
        self._next: Iterator[tuple[ScriptedTurn, dict[bool, list[int]]]] = iter(())
        self._opened: tuple[ModelConfig, Prompts, int] | None = None

    def open(self, progress: Progress) -> None:
        stored = find_model(self._folder)
        config, prompts = stored.config, Prompts(self._folder, stored.manifest.checkpoint)
        # Nothing is computed, so the model's own limit says nothing: an agent's prompt fits the demo too.
        if self._asked is not None and not 1 <= self._asked <= MOST_CONTEXT:
            raise UsageError(f"--context is {self._asked}, expected 1 to {MOST_CONTEXT}")
        context = DEFAULT_CONTEXT if self._asked is None else self._asked
        modes = [{think: script_ids(prompts, turn, think) for think in (False, True)} for turn in self._turns]
        self._next = itertools.cycle(zip(self._turns, modes, strict=True))
        self._opened = config, prompts, context
        progress(1, 1)

    def _open(self) -> tuple[ModelConfig, Prompts, int]:
        if self._opened is None:
            raise RuntimeError("the replay is not open yet")
        return self._opened

    @property
    def prompts(self) -> Prompts:
        return self._open()[1]

    @property
    def context(self) -> int:
        return self._open()[2]

    @property
    def vocabulary(self) -> int:
        return self._open()[0].vocab_size

    def limits(self, count: int) -> Limits:
        config, _, context = self._open()
        return session_limits(config, ELEMENT, memory_limit(), count, context)

    def session(self) -> Session:
        config, prompts, context = self._open()
        model = ScriptedModel(config, [], 0, prompts.markers.end)
        return Session(cast(Transformer, model), context, prompts.markers, GROWTH)

    def run(self, session: Reusable, job: Job) -> Run:
        config, prompts, _ = self._open()
        turn, modes = next(self._next)
        script = _rest(modes[thinks(job.prompt, prompts.markers)], job.prompt, prompts.markers)
        model = ScriptedModel(config, script, len(job.prompt), prompts.markers.end)
        cast(Session, session).model = cast(Transformer, model)
        limits = [len(script)] if turn.finish == "length" or turn.error is not None else []
        limits += [] if job.max_tokens is None else [job.max_tokens]
        asked = replace(wanted(job), max_tokens=min(limits, default=None))
        begun, count = 0.0, 0
        real = steps(session, job.prompt, job.sampling, asked)
        while True:
            try:
                step = next(real)
            except StopIteration as end:
                if turn.error is not None:
                    raise MachineError(turn.error) from None
                return cast(Ended, end.value)
            if isinstance(step, Sampled):
                if step.token not in (model.expected, prompts.markers.end_think):
                    raise InputError(
                        "the request does not allow what the script says next",
                        where=turn.where,
                        next="change the script, or what the request demands of the answer",
                    )
                begun = begun or time.monotonic()
                due = begun + count / turn.tokens_per_second if turn.tokens_per_second else 0.0
                count += 1
                if due > time.monotonic():
                    yield Pause(due)
            yield step

    def memory(self) -> dict[str, int]:
        return {}

    def paging(self) -> dict[str, float]:
        return {}

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def script_ids(prompts: Prompts, turn: ScriptedTurn, think: bool) -> list[int]:
    """The ids a model would have sampled to say this turn, without the end of sentence. Raises InputError.

    Where it does not think, the turn's reasoning is left out.
    """
    try:
        if turn.raw is not None:
            return prompts.tokenizer.encode(turn.raw)
        calls = [ToolCall(str(i), call.name, call.arguments) for i, call in enumerate(turn.calls)]
        message = AssistantMessage(turn.content, turn.reasoning if think else None, calls or None)
        # With tools the template keeps every reasoning.
        said = Conversation([UserMessage(""), message], tools=[ToolDefinition("any")], thinking_mode=think)
        ids = prompts.encode(said)
    except (RuntimeError, ValueError, InputError) as error:
        raise InputError(f"the turn can't be written in tokens: {error}", where=turn.where) from None
    start = ids.index(prompts.markers.assistant) + 2  # past the marker that opens or closes the thinking
    return ids[start : ids.index(prompts.markers.end, start)]


def _rest(script: list[int], prompt: Sequence[int], markers: Markers) -> list[int]:
    """The script without what the prompt has begun of it already, such as the opening of a tool call."""
    said = next((n for n, token in enumerate(reversed(prompt)) if token == markers.end_think), 0)
    begun = list(prompt[len(prompt) - said :])
    return script[said:] if script[:said] == begun else script
