"""A model that says what a script says, token by token; its weights are not loaded.

Tokenizer, template, decode loop, sampler, and the accounting of what a session keeps are the real ones: the
script's next token simply has all the probability.

Model turns written down: one JSON object a line, for `serve --replay`.

reasoning           text of the thinking
content             text of the answer
tool_calls          [{"name": ..., "arguments": {...}}]
raw                 instead of the three: exact text after the prompt, markers in it are markers
finish              "stop" (default) or "length"
tokens_per_second   0 (default): as fast as possible
error               the turn fails with this message after what it said
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import mlx.core as mx
import numpy as np
from deepseek_recipe import AssistantMessage, Conversation, ToolCall, ToolDefinition, UserMessage

from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.chooser import thinks
from dsv4_mlx.engine.decode import Drawn, Ended, PrefillProgress, Rows, Token
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.generate import run
from dsv4_mlx.engine.info import check
from dsv4_mlx.engine.memory import DEFAULT_CONTEXT
from dsv4_mlx.engine.session import Session
from dsv4_mlx.engine.session_rows import SessionRows
from dsv4_mlx.errors import InputError, MachineError, Progress, UsageError
from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.model.state import ModelState, Snapshot
from dsv4_mlx.scheduler.backend import GROWTH, Pause, Run, session_limits, wanted
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.session_policy import SessionLimits
from dsv4_mlx.tokenizer.template import Markers, Prompts

KEYS = frozenset(("reasoning", "content", "tool_calls", "raw", "finish", "tokens_per_second", "error"))
SPOKEN = ("reasoning", "content", "tool_calls")


@dataclass(frozen=True)
class ScriptedCall:
    """`arguments`: JSON text of an object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ScriptedTurn:
    """One line. `where` names it for messages."""

    where: str
    reasoning: str = ""
    content: str = ""
    calls: tuple[ScriptedCall, ...] = ()
    raw: str | None = None
    ids: tuple[int, ...] | None = None  # instead of all text: the tokens
    finish: Literal["stop", "length"] = "stop"
    tokens_per_second: float = 0.0
    error: str | None = None


def read_script(path: Path) -> list[ScriptedTurn]:
    """The turns of a file, at least one; empty lines are skipped. Raises InputError, naming the line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"the replay file can't be read: {error.strerror}", where=path) from None
    turns = [_turn(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not turns:
        raise InputError("the replay file has no turns", where=path, next="write one JSON object a line")
    return turns


def _turn(line: bytes, where: str) -> ScriptedTurn:
    def wrong(found: str, expected: str) -> NoReturn:
        raise InputError(f"{found}, expected {expected}", where=where)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            wrong("a key comes twice", "each once")
        return found

    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=once)
    except UnicodeDecodeError:
        wrong("the line is not UTF-8", "JSON text")
    except (ValueError, RecursionError) as error:
        wrong(f"the line is not JSON ({error})", "one object")
    if not isinstance(value, dict):
        wrong(f"the line is a JSON {type(value).__name__}", "an object")
    unknown = sorted(value.keys() - KEYS)
    if unknown:
        wrong(f"there is a key {unknown[0]!r}", f"only {', '.join(sorted(KEYS))}")
    for key in ("reasoning", "content", "raw", "error"):
        if key in value and not _is_text(value[key]):
            wrong(f"{key} is no text", "a string of Unicode characters")
    if "raw" in value and any(key in value for key in SPOKEN):
        wrong("there is raw and more", f"raw alone, or {', '.join(SPOKEN)}")
    if not any(key in value for key in ("raw", "error", *SPOKEN)):
        wrong("the turn says nothing", "one of reasoning, content, tool_calls, raw, error")
    if value.get("finish", "stop") not in ("stop", "length"):
        wrong(f"finish is {value['finish']!r}", "stop or length")
    speed = value.get("tokens_per_second", 0)
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not (0 <= speed < math.inf):
        wrong(f"tokens_per_second is {speed!r}", "0 or a positive number")
    calls = value.get("tool_calls", [])
    if not isinstance(calls, list):
        wrong("tool_calls is no list", "[{name, arguments}]")
    return ScriptedTurn(
        where=where,
        reasoning=value.get("reasoning", ""),
        content=value.get("content", ""),
        calls=tuple(_call(call, wrong) for call in calls),
        raw=value.get("raw"),
        finish=value.get("finish", "stop"),
        tokens_per_second=float(speed),
        error=value.get("error"),
    )


def _call(call: Any, wrong: Any) -> ScriptedCall:
    if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
        wrong("a tool call is not {name, arguments}", "these two keys")
    if not isinstance(call["name"], str) or not call["name"] or not _is_text(call["name"]):
        wrong("the name of a tool call is no text", "a string")
    if not isinstance(call["arguments"], dict):
        wrong(f"the arguments of {call['name']!r} are no object", "a JSON object")
    arguments = json.dumps(call["arguments"], ensure_ascii=False)
    if not _is_text(arguments):
        wrong(f"the arguments of {call['name']!r} hold no text", "Unicode characters")
    return ScriptedCall(call["name"], arguments)


def _is_text(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


UNLIKELY = -1e6  # the logit of every token but the script's; finite, as a real model's are
MOST_CONTEXT = 1 << 20
ELEMENT = 2  # bytes of a number in the sessions whose memory is accounted for: bfloat16, as on a Mac


class SilentModel:
    """What a Session needs of a model, and no layers: it counts tokens and has nothing to say about them."""

    dtype, chunks_per_step = mx.bfloat16, 1

    def __init__(self, config: ModelConfig) -> None:
        self.config, self.ops = config, EngineOptions().ops

    def use_ops(self, ops: object) -> None:
        """It computes nothing."""

    def new_state(self, *, growth: int) -> ModelState:
        return ModelState(replace(self.config, layers=0, mtp_layers=0), self.dtype, growth=growth)

    def streams_of(
        self,
        chunks: Sequence[mx.array],
        state: ModelState,
        check_cancelled: Callable[[], None] = lambda: None,
    ) -> tuple[list[mx.array], list[Snapshot]]:
        """As Transformer, of one chunk [1, T]: the streams are the tokens."""
        (tokens,) = chunks
        state.reserve(state.length + tokens.shape[1])
        state.advance(tokens.shape[1])
        return [tokens], []

    def step(self, tokens: mx.array, state: ModelState) -> mx.array:
        """As Transformer: tokens [1, 1] -> logits."""
        return self.logits(self.streams_of([tokens], state)[0][0], last=True)

    def prepare(self, tokens: mx.array, state: ModelState) -> None:
        """As Transformer, where steps are not replayed."""

    def logits(self, streams: mx.array, *, last: bool) -> mx.array:
        """float32 [1, 1, 1], or [1, T, V] where all are asked for: none is likelier than another."""
        return mx.ones((1, 1, 1) if last else (*streams.shape, self.config.vocab_size))


class ScriptedRows:
    """Answers the decode loop for a session of a SilentModel: `script`, an id after the other, then `end` for
    ever."""

    def __init__(self, rows: SessionRows, script: Sequence[int], end: int) -> None:
        self._rows, self._script, self._end = rows, list(script), end
        self._at = 0

    @property
    def expected(self) -> int:
        """The next token."""
        return self._script[self._at] if self._at < len(self._script) else self._end

    def __call__(self, rows: Rows) -> Generator[PrefillProgress, None, Drawn]:
        """A constraint, or a thinking that has taken its budget, may draw something else than `expected`."""
        yield from self._rows.take_in(rows)
        if rows.position:
            self._follow(rows.tokens[-1])
        if not rows.count:
            return Drawn(())
        logits = np.full(self._rows.session.vocabulary, UNLIKELY, np.float32)
        logits[self.expected] = 0
        return Drawn((rows.choose.draw(mx.array(logits)),))

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
        stored = check(self._folder)
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

    def limits(self, count: int) -> SessionLimits:
        config, _, context = self._open()
        return session_limits(config, ELEMENT, memory_limit(), count, context)

    def session(self) -> Session:
        config, prompts, context = self._open()
        return Session(SilentModel(config), context, prompts.markers, GROWTH)

    def run(self, rows: SessionRows, job: GenerationRequest) -> Run:
        prompts = self.prompts
        turn, modes = next(self._next)
        script = _rest(modes[thinks(job.prompt, prompts.markers)], job.prompt, prompts.markers)
        answer = ScriptedRows(rows, script, prompts.markers.end)
        limits = [len(script)] if turn.finish == "length" or turn.error is not None else []
        limits += [] if job.max_tokens is None else [job.max_tokens]
        asked = replace(wanted(job), max_tokens=min(limits, default=None))
        begun, count = 0.0, 0
        real = run(rows, job.prompt, job.sampling, asked, answer)
        while True:
            try:
                step = next(real)
            except StopIteration as end:
                if turn.error is not None:
                    raise MachineError(turn.error) from None
                return cast(Ended, end.value)
            if isinstance(step, Token):
                if step.id not in (answer.expected, prompts.markers.end_think):
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

    notice = ""

    def recently(self) -> str:
        return ""

    def identity(self) -> str:
        return ""  # there is no state to save

    def rest(self) -> None:
        return None

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def script_ids(prompts: Prompts, turn: ScriptedTurn, think: bool) -> list[int]:
    """The ids a model would have sampled to say this turn, without the end of sentence. Raises InputError.

    Where it does not think, the turn's reasoning is left out.
    """
    try:
        if turn.ids is not None:
            return list(turn.ids)
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
