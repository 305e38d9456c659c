"""One turn on the wire: sampled tokens in, the events of its protocol out, and the whole answer at the end.

open -> keep_alive* -> started -> token* -> finish | failed        for a stream, each a list of frames
answer()                                                           the JSON of a plain response
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from dsv4_mlx import __version__
from dsv4_mlx.engine.chooser import Score
from dsv4_mlx.engine.decode import Token
from dsv4_mlx.scheduler.turn_cache import Completion
from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.protocols.fields import Body
from dsv4_mlx.server.protocols.request import ParsedRequest
from dsv4_mlx.tokenizer.output_parser import Chunk, OutputParser
from dsv4_mlx.tokenizer.template import Spelling

FINGERPRINT = f"fp_dsv4mlx_{__version__}"


class StreamEncoder(ABC):
    """What the protocols have in common. `handle` names the turn; ids are made from it."""

    prefix = ""  # of the response's id
    content_type = "text/event-stream; charset=utf-8"  # of a stream

    def __init__(self, ask: ParsedRequest, handle: str, prompt_tokens: int, spelling: Spelling) -> None:
        self.ask, self.handle, self.prompt_tokens, self.spelling = ask, handle, prompt_tokens, spelling
        self.id = f"{self.prefix}{handle}"
        self.created = int(time.time())
        self.cached = 0
        self.tokens = 0
        tools, one = ask.tools.offered, ask.tools.one
        self._parser = OutputParser(self.generator(), ask.parsing, spelling, tools=tools, one=one)
        self._answer: Any = None  # the library's accumulator, once the prompt is in

    @property
    def over(self) -> bool:
        """Whether the text has ended the turn: nothing sampled from here on is part of it."""
        return self._parser.over

    @property
    def unfinished(self) -> bool:
        """Whether the turn ended inside a tool call."""
        return self._parser.unfinished

    @abstractmethod
    def generator(self) -> Any:
        """The library's maker of this protocol's events."""

    @abstractmethod
    def accumulator(self) -> Any:
        """The library's maker of this protocol's whole answer."""

    @abstractmethod
    def event(self, given: Body) -> list[str]:
        """An event of the library -> frames."""

    @abstractmethod
    def whole(self, given: Body) -> Body:
        """The library's whole answer -> ours."""

    @abstractmethod
    def completion(self) -> Completion:
        """What the client was told, for the turn to be recognised when it comes back."""

    def open(self, cached: int) -> list[str]:
        """Before the prompt is computed."""
        return [": keep-alive\n\n"]

    def keep_alive(self, done: int, total: int) -> list[str]:
        """While nothing else can be said. `done` of `total` prompt tokens are computed; 0 of 0 in a queue."""
        return [f": prefill {done}/{total}\n\n" if total else ": keep-alive\n\n"]

    def scored(self, scores: Sequence[Score]) -> None:  # noqa: B027 - one protocol has a use for it
        """Log probabilities of the prompt, where it asked for them; before `started`."""

    def started(self, cached: int) -> list[str]:
        self.cached = cached
        self._answer = self.accumulator()
        return self._take(self._parser.ready(self.prompt_tokens, cached, FINGERPRINT))

    def token(self, token: Token) -> list[str]:
        if self.over:
            return []
        self.tokens += 1
        return self._take(self._parser.push(token.id, token.logprob, token.top))

    def finish(self, *, length: bool) -> list[str]:
        return self._take(self._parser.finish(length=length))

    @abstractmethod
    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        """The last frames of a stream that broke."""

    def answer(self) -> Body:
        """The JSON of a plain response; after `finish`."""
        return self.whole(json.loads(self._answer.to_json()))

    def _take(self, chunks: list[Chunk]) -> list[str]:
        frames = []
        for chunk in chunks:
            if self.ask.stream:
                frames += self.event(json.loads(chunk.to_json()))
            self._answer.accumulate(chunk)
        return frames


def frame(data: Body, name: str | None = None) -> str:
    """One server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n" if name is None else f"event: {name}\ndata: {text}\n\n"


def is_object(text: str) -> bool:
    """Whether a call's arguments are whole: a call that was cut off is left out of a plain answer."""
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
