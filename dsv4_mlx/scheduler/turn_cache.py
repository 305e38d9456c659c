"""Exact turns: what the model sampled is remembered, and put back where its rendering would stand.

A client sends an earlier turn back as text and JSON. Rendered again it may differ from what was sampled
(JSON spelled otherwise, reasoning left out, text cut into other tokens), and from there on nothing that was
computed can be used. So a turn's ids are kept and spliced into the prompt where the turn comes back

    by the ids of its tool calls, by the handle that went out with its thinking (`signature`,
    `encrypted_content`), or, with neither, after the very prompt it answered,

if it says what it said: the same calls with the same arguments as JSON, the same content or none, the same
reasoning or none. Anything else is the client's own text and is rendered.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from deepseek_recipe import AssistantMessage, Conversation, Message

from dsv4_mlx.tokenizer.template import Prompts

TURNS = 4096  # kept at most
BYTES = 64 << 20  # that they take at most
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Call:
    """A tool call as the client got it; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Completion:
    """A finished turn as the client got it."""

    reasoning: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Rendered:
    """A prompt. `spliced` of its earlier turns are as sampled; `recovered` of those came without their
    reasoning."""

    ids: tuple[int, ...]
    spliced: int
    recovered: int


@dataclass(frozen=True, eq=False)
class _Turn:
    ids: Ids  # from behind the assistant marker to the end of sentence
    said: Completion
    keys: tuple[str, ...]

    @property
    def size(self) -> int:
        calls = sum(len(call.name) + len(call.arguments) for call in self.said.calls)
        return self.ids.nbytes + 4 * (len(self.said.reasoning) + len(self.said.content) + calls) + 1024


class TurnCache:
    """The turns of one server, for every client; safe for several threads. Handles and call ids are too
    random to be guessed, so no client reaches another's turn."""

    def __init__(self, prompts: Prompts, most: int = TURNS, size: int = BYTES) -> None:
        self._prompts, self._markers = prompts, prompts.markers
        self._most, self._size = most, size
        self._lock = threading.Lock()
        self._turns: OrderedDict[int, _Turn] = OrderedDict()  # least recently used first
        self._by_key: dict[str, int] = {}
        self._count = self._taken = 0

    def handle(self) -> str:
        """A new handle for the turn that begins: 128 random bits, and nothing in them."""
        return secrets.token_urlsafe(16)

    def remember(
        self, prompt: Sequence[int], sampled: Sequence[int], said: Completion, handle: str = ""
    ) -> None:
        """Keep a turn that the model ended itself. `sampled`: the ids of its Token events.

        Not for turns cut short by a limit, a stop string or the client: those have another end.
        """
        marked = _last(prompt, self._markers.assistant)
        if marked is None or self._markers.end in sampled or self._markers.assistant in sampled:
            return
        ids = np.array([*prompt[marked + 1 :], *sampled, self._markers.end], np.int32)
        before = hashlib.sha256(np.array(prompt[: marked + 1], np.int32).tobytes())
        keys = [_call_key(call.id) for call in said.calls] + [_place_key(before, said.content)]
        if handle:
            keys.append(f"handle {handle}")
        turn = _Turn(ids, said, tuple(keys))
        with self._lock:
            self._count += 1
            self._turns[self._count] = turn
            self._taken += turn.size
            for key in keys:
                self._by_key[key] = self._count
            while self._turns and (len(self._turns) > self._most or self._taken > self._size):
                self._forget()

    def render(
        self, conversation: Conversation, handles: Mapping[int, str] | None = None, most: int | None = None
    ) -> Rendered:
        """The prompt's ids. `handles`: those that came back, by index of message. Raises InputError, and
        TooManyTokens before it has encoded much more than `most`."""
        ids = self._prompts.encode(conversation, most)
        messages = conversation.messages
        found = self._found(ids, messages, handles or {})
        lost = {i for i, turn in found.items() if turn.said.reasoning and not messages[i].reasoning_content}
        if any(messages[i].reasoning_content is None for i in lost):
            # Whether the template keeps a turn's reasoning shows only where there is some.
            ids = self._prompts.encode(
                _with_reasoning(conversation, {i: found[i].said.reasoning for i in lost}), most
            )
        return self._spliced(ids, messages, found, lost)

    def _found(
        self, ids: Sequence[int], messages: Sequence[Message], handles: Mapping[int, str]
    ) -> dict[int, _Turn]:
        """The remembered turn of each assistant message that says the same."""
        spans = self._spans(ids, messages)
        uses = Counter(call.id for message in messages for call in message.tool_calls or [])
        before, hashed = hashlib.sha256(), 0
        found: dict[int, _Turn] = {}
        for i, (start, end) in spans.items():
            message = messages[i]
            before.update(np.array(ids[hashed:start], np.int32).tobytes())
            keys = [_call_key(call.id) for call in message.tool_calls or []]
            if any(uses[call.id] > 1 for call in message.tool_calls or []):
                keys = []  # whose turn it was can't be told
            elif not keys:
                keys = [_place_key(before, message.content)]
                if i in handles:
                    keys.insert(0, f"handle {handles[i]}")
            turn = self._recall(keys, message, together=bool(message.tool_calls))
            if turn is not None and self._keeps(turn, ids[start]):
                found[i] = turn
                before.update(turn.ids.tobytes())
            else:
                if turn is not None and message.reasoning_content is None:
                    found[i] = turn
                before.update(np.array(ids[start:end], np.int32).tobytes())
            hashed = end
        return found

    def _spliced(
        self, ids: Sequence[int], messages: Sequence[Message], found: Mapping[int, _Turn], lost: set[int]
    ) -> Rendered:
        whole: list[int] = []
        taken = spliced = recovered = 0
        for i, (start, end) in self._spans(ids, messages).items():
            if i in found and self._keeps(found[i], ids[start]):
                whole += ids[taken:start]
                whole += found[i].ids.tolist()
                taken = end
                spliced += 1
                recovered += i in lost
        return Rendered((*whole, *ids[taken:]), spliced, recovered)

    def _keeps(self, turn: _Turn, opening: int) -> bool:
        """Whether the template, which rendered the turn with this first token, keeps its reasoning if any."""
        return not (int(turn.ids[0]) == self._markers.think and opening == self._markers.end_think)

    def _spans(self, ids: Sequence[int], messages: Sequence[Message]) -> dict[int, tuple[int, int]]:
        """By index of assistant message: where its turn stands, behind the assistant marker to past the end.

        Text can't make these markers, so the n-th one opens the n-th assistant message.
        """
        said = [i for i, message in enumerate(messages) if message.role == "assistant"]
        opens = [at + 1 for at, token in enumerate(ids) if token == self._markers.assistant]
        if len(opens) not in (len(said), len(said) + 1):
            return {}
        spans = {}
        for i, start, limit in zip(said, opens, [*opens[1:], len(ids)], strict=False):
            end = next((at + 1 for at in range(start, limit) if ids[at] == self._markers.end), None)
            if end is not None and not messages[i].prefix:
                spans[i] = start, end
        return spans

    def _recall(self, keys: Sequence[str], message: Message, together: bool) -> _Turn | None:
        """The turn that says the same and that `keys` name: all of them if `together`, else any."""
        with self._lock:
            known = [self._by_key.get(key) for key in keys]
            if together and len(set(known)) != 1:
                return None
            number = next((one for one in known if one is not None), None)
            if number is None:
                return None
            turn = self._turns[number]
            self._turns.move_to_end(number)
        return turn if _same(turn.said, message) else None

    def _forget(self) -> None:
        number, turn = self._turns.popitem(last=False)
        self._taken -= turn.size
        for key in turn.keys:
            if self._by_key.get(key) == number:
                del self._by_key[key]


def _same(said: Completion, message: Message) -> bool:
    calls = message.tool_calls or []
    if [(call.id, call.name) for call in calls] != [(call.id, call.name) for call in said.calls]:
        return False
    if message.content.strip() not in ("", said.content.strip()):
        return False
    if (message.reasoning_content or "").strip() not in ("", said.reasoning.strip()):
        return False
    pairs = zip(calls, said.calls, strict=True)
    return all(_same_json(one.arguments, other.arguments) for one, other in pairs)


def _same_json(one: str, other: str) -> bool:
    if one == other:
        return True
    try:
        return bool(json.dumps(json.loads(one)) == json.dumps(json.loads(other)))
    except (ValueError, RecursionError):
        return False


def _with_reasoning(conversation: Conversation, reasoning: Mapping[int, str]) -> Conversation:
    messages = [
        AssistantMessage(message.content, reasoning[i], message.tool_calls, message.prefix)
        if i in reasoning
        else message
        for i, message in enumerate(conversation.messages)
    ]
    kind = conversation.response_format
    return Conversation(
        messages,
        thinking_mode=conversation.thinking_mode,
        tools=conversation.tools,
        tool_choice=conversation.tool_choice,
        reasoning_effort=conversation.reasoning_effort,
        response_format="json_object" if kind == "json_object" else "text",
        response_schema=conversation.response_schema,
        response_regex=conversation.response_regex,
    )


def _call_key(call_id: str) -> str:
    return f"call {call_id}"


def _place_key(before: hashlib._Hash, content: str) -> str:
    digest = before.copy()
    digest.update(content.strip().encode("utf-8", "surrogatepass"))
    return f"place {digest.hexdigest()}"


def _last(ids: Sequence[int], token: int) -> int | None:
    return next((at for at in range(len(ids) - 1, -1, -1) if ids[at] == token), None)
