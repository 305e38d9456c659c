"""Conversations -> the exact prompt of DeepSeek V4, as token ids; and how its markers are spelt.

A model that quotes `</think>` or a tool call's markup writes ordinary tokens; one that ends its thinking or
calls a tool samples the marker tokens. Read as text, the two look alike. So the parser gets a tokenizer whose
markers are spelt with a random word of this process, which no text contains.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from deepseek_recipe import (
    AssistantMessage,
    ChatCompletionRequest,
    Conversation,
    ConversationRequest,
    DeepseekV4Encoding,
    InferenceChunk,
    InferenceFinishReason,
    Message,
    ModelVersion,
    ParsingOptions,
    SpecialToken,
    SpecialTokens,
    StreamProcessor,
    SystemMessage,
    ThinkingInitialStage,
    Tokenizer,
    UserMessage,
)

from dsv4_mlx.errors import DoesNotFit, InputError

PIECE = 1 << 14  # characters that are encoded at once: longer texts take longer for each
NEAR = 1 << 10  # characters before a piece's end in which a cut is looked for first
SLACK = 16  # tokens that a cut within a word may add to a count
# DeepSeek's rules of what one word is, and places that no word spans: digits and ideographs are words of
# their own, none goes on behind a line's end or before a space. Parts cut there have the ids of the whole.
_KANA = "\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff"
_WORDS = (
    r"\p{N}{1,3}",
    f"[{_KANA}]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_BETWEEN = re.compile(
    r"(?<=\n)(?=\S)|(?<=\S)(?= )|(?<=[0-9])(?=[A-Za-z])|(?<=[A-Za-z])(?=[0-9])"
    rf"|(?<=[{_KANA}])(?=[^{_KANA}])|(?<=[^{_KANA}])(?=[{_KANA}])"
)
_PARSED = (SpecialToken.ThinkingStart, SpecialToken.ThinkingEnd, SpecialToken.Dsml)


class TooManyTokens(DoesNotFit):
    """A text of more tokens than asked for: at least `count`."""

    def __init__(self, count: int, most: int) -> None:
        super().__init__(f"the text has {count} tokens or more, expected at most {most}")
        self.count = count


class Spelling:
    """One checkpoint's tokenizer with its markers respelt."""

    def __init__(self, folder: Path) -> None:
        """Read `folder/tokenizer.json`. Raises InputError."""
        path = folder / "tokenizer.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            added: dict[int, str] = {int(one["id"]): str(one["content"]) for one in content["added_tokens"]}
            word = secrets.token_hex(8)
            private = {text: f"\ue000{word}.{id}\ue001" for id, text in added.items()}
            self.tokenizer = Tokenizer.from_str(json.dumps(_respelt(content, private)))
        except Exception as error:  # the library raises its own kinds for every defect of the file
            raise InputError(f"tokenizer.json can't be read: {error}", where=path) from None
        rules = content["pre_tokenizer"].get("pretokenizers", []) if content.get("pre_tokenizer") else []
        known = tuple(one["pattern"].get("Regex") for one in rules if one.get("type") == "Split") == _WORDS
        self._between = (
            _BETWEEN if known and not (content.get("normalizer") or {}).get("normalizers") else None
        )
        self._longest = max(map(len, added.values()), default=0)
        self._texts, self._private = added, re.compile(f"\ue000{word}\\.(\\d+)\ue001")
        ids = {text: id for id, text in added.items()}
        dsml, start, end = (SpecialToken.Dsml, SpecialToken.ThinkingStart, SpecialToken.ThinkingEnd)
        self.dsml, self.think, self.end_think = (ids.get(t.default_str(), -1) for t in (dsml, start, end))
        self.markup = private.get(dsml.default_str(), f"\ue000{word}")  # how the parser sees the DSML marker
        self.special_end = private.get(end.default_str(), end.default_str())
        self._decoded: dict[int, str] = {}
        self.special = SpecialTokens(
            dsml=self.markup,
            thinking_start=private.get(start.default_str()),
            thinking_end=self.special_end,
        )
        # for reading text as it is: nothing in it looks like these
        self.unparsed = SpecialTokens(
            dsml=f"\ue000{word}.d\ue001",
            thinking_start=f"\ue000{word}.s\ue001",
            thinking_end=f"\ue000{word}.e\ue001",
        )
        # tokens that are never part of a text; the library reads the other two
        self.control = frozenset(added) - {self.dsml, self.end_think}

    def id(self, text: str) -> int | None:
        """The id of a marker."""
        return next((id for id, spelt in self._texts.items() if spelt == text), None)

    def encode(
        self, text: str, most: int | None = None, start: int = 0, stop: int | None = None
    ) -> list[int]:
        """Ids of plain text[start:stop]: a marker spelt in it stays text. Raises TooManyTokens.

        Other threads run meanwhile, and memory is a piece's, but for words that are longer than one.
        """
        ids: list[int] = []
        word, count = start, 0  # where what is not encoded yet begins, and at least so many tokens are in it
        for begin, end, safe in self._parts(text, start, len(text) if stop is None else stop):
            if most is not None and not (safe and word == begin):
                count += len(self.tokenizer.encode(text[begin:end])) - SLACK
            if safe and (most is None or len(ids) + count <= most):
                ids += self.tokenizer.encode(text[word:end])
                word, count = end, 0
            if most is not None and len(ids) + count > most:
                raise TooManyTokens(len(ids) + count, most)
        return ids

    def _parts(self, text: str, begin: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Where parts of at most PIECE characters begin and end, and whether no word goes on there."""
        while begin < stop:
            end, safe = min(begin + PIECE, stop), begin + PIECE >= stop
            if not safe and self._between is not None:
                near = max(begin + 1, end - NEAR)
                found = next(self._between.finditer(text, near, end), None)
                found = found or next(self._between.finditer(text, begin + 1, end), None)
                end, safe = (end, False) if found is None else (found.start(), True)
            yield begin, end, safe
            begin = end

    def begun(self, text: str) -> list[int]:
        """Ids of a text that is to be continued, with the marker that begins every prompt."""
        start = self.id(SpecialToken.Bos.default_str())
        return self.encode(text) if start is None else [start, *self.encode(text)]

    def encode_raw(self, text: str, most: int | None = None) -> list[int]:
        """Ids of text in which markers count as markers. Raises TooManyTokens."""
        marker = re.compile("|".join(re.escape(one) for one in self._texts.values()) or r"(?!)")
        ids = {spelt: id for id, spelt in self._texts.items()}
        out: list[int] = []
        begin = at = 0
        while at < len(text):
            found = marker.search(text, at, at + PIECE + self._longest)
            if found is None:
                at += PIECE
                continue
            out += self.encode(text[begin : found.start()], most)
            out.append(ids[found[0]])
            if most is not None and len(out) > most:
                raise TooManyTokens(len(out), most)
            begin = at = found.end()
        out += self.encode(text[begin:], None if most is None else most - len(out))
        return out

    def text(self, id: int) -> str:
        """One token as text; empty for part of a character."""
        if id not in self._decoded:
            decoder = PlainText(self)
            decoder.push([id])
            self._decoded[id] = decoder.text
        return self._decoded[id]

    def decode(self, ids: list[int]) -> str:
        """Text of ids, markers as the checkpoint spells them."""
        decoder = PlainText(self)
        decoder.push(ids)
        return self.original(decoder.whole())

    def original(self, text: str) -> str:
        """`text` with markers as the checkpoint spells them."""
        return self._private.sub(lambda found: self._texts[int(found[1])], text)


class PlainText:
    """Ids -> text, markers included in their private spelling. Bytes of an unfinished character are held."""

    def __init__(self, spelling: Spelling) -> None:
        request = ConversationRequest(Conversation([], thinking_mode=False), ModelVersion.DeepseekV4Pro)
        generator = ChatCompletionRequest.chunk_generator(request, "text", "text")
        options = ParsingOptions(
            parse_tool_calls=False,
            thinking_initial_stage=ThinkingInitialStage.ContentContinuation,  # keeps newlines at the start
            special_tokens=spelling.unparsed,
        )
        self._stream = StreamProcessor(generator, options, spelling.tokenizer)
        self._stream.push(InferenceChunk.ready())
        self.text = ""

    def push(self, tokens: list[int]) -> None:
        for token in tokens:  # one by one: of several that end within a character the library loses all
            self._take(self._stream.push(InferenceChunk.tokens([token])))

    def whole(self) -> str:
        """All of the text; the end of it."""
        self._take(self._stream.push(InferenceChunk.finish(InferenceFinishReason.Stop)))
        self._take(self._stream.finish())
        return self.text

    def _take(self, chunks: list[Any]) -> None:
        for chunk in chunks:
            for choice in json.loads(chunk.to_json())["choices"]:
                self.text += choice["delta"].get("content") or ""


def _respelt(content: dict[str, Any], private: dict[str, str]) -> dict[str, Any]:
    for one in content["added_tokens"]:
        one["content"] = private[one["content"]]
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {private.get(text, text): id for text, id in vocabulary.items()}
    return content


Think = Literal["off", "on", "max"]
Role = Literal["system", "user", "assistant"]
Level = Literal["low", "high", "max"]  # how much to think, as clients say it
THINK: tuple[Think, ...] = ("off", "on", "max")

# The library's words are those of the 0731 checkpoint: `low` adds no text, `high` adds what April was
# trained to read as "max", `max` adds a text April has never seen, and no word at all means high.
LEVELS: dict[str, dict[Level, Level]] = {
    "april": {"low": "low", "high": "low", "max": "high"},
    "0731": {"low": "low", "high": "high", "max": "max"},
}

_MESSAGES: dict[Role, Callable[[str], Message]] = {
    "system": SystemMessage,
    "user": UserMessage,
    "assistant": AssistantMessage,
}


@dataclass(frozen=True)
class Markers:
    """Token ids that structure a prompt."""

    end: int  # end of sentence: stops generation
    user: int
    assistant: int
    think: int
    end_think: int


class Prompts:
    """Renders conversations for one checkpoint. Text that spells a marker stays text."""

    def __init__(self, folder: Path, checkpoint: str) -> None:
        """Read `folder/tokenizer.json`. Raises InputError."""
        self._folder, path = folder, folder / "tokenizer.json"
        if not path.is_file():
            raise InputError(
                "there is no tokenizer.json", where=folder, next="copy it from the official checkpoint"
            )
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises its own kinds for every defect of the file
            raise InputError(f"tokenizer.json can't be read: {error}", where=path) from None
        self.levels = LEVELS[checkpoint]
        self.effort: dict[Think, Level | None] = {
            "off": None,
            "on": self.levels["high"],
            "max": self.levels["max"],
        }
        self._encoding = DeepseekV4Encoding().with_tokenizer(self.tokenizer)
        self.markers = Markers(
            end=self._marker(SpecialToken.Eos, path),
            user=self._marker(SpecialToken.User, path),
            assistant=self._marker(SpecialToken.Assistant, path),
            think=self._marker(SpecialToken.ThinkingStart, path),
            end_think=self._marker(SpecialToken.ThinkingEnd, path),
        )

    @cached_property
    def spelling(self) -> Spelling:
        """The same tokenizer as what reads answers needs it."""
        return Spelling(self._folder)

    def conversation(self, messages: list[Message], think: Think, schema: Any = None) -> Conversation:
        """Messages and a mode -> the library's conversation, with the effort word this checkpoint knows.

        schema: a JSON Schema that the prompt asks the answer to follow; None: it asks for nothing.
        """
        effort = self.effort[think]
        return Conversation(
            messages, thinking_mode=think != "off", reasoning_effort=effort, response_schema=schema
        )

    def talk(self, said: Iterable[tuple[Role, str]], think: Think) -> Conversation:
        """A conversation of (role, text) pairs, without earlier answers' thinking. Raises InputError."""
        return self.conversation([_message(role, text) for role, text in said], think)

    def ask(self, text: str, think: Think, schema: Any = None, system: str = "") -> Conversation:
        """A conversation of one user message, after `system` if there is any. Raises InputError."""
        before = [_message("system", system)] if system else []
        return self.conversation([*before, _message("user", text)], think, schema)

    def encode(self, conversation: Conversation, most: int | None = None) -> list[int]:
        """The prompt's token ids, ending where the assistant's turn begins. Raises InputError, TooManyTokens.

        A long one is encoded in pieces, with the same ids: other threads run, and memory is a piece's.
        """
        try:
            rendered = self._encoding.render_conversation(conversation)
            text, markers = rendered.prompt, rendered.special_ranges
            del rendered  # which has a copy of the text
            if most is None or len(text) <= PIECE:
                ids = self._encoding.encode(conversation)
            else:
                ids = self._pieces(text, markers, most)
        except (RuntimeError, ValueError) as error:
            raise InputError(f"the conversation can't be encoded: {error}") from None
        if most is not None and len(ids) > most:
            raise TooManyTokens(len(ids), most)
        return ids

    def _pieces(self, text: str, markers: list[tuple[int, int]], most: int) -> list[int]:
        ids: list[int] = []
        begin = 0
        for start, end in [*markers, (len(text), len(text))]:
            ids += self.spelling.encode(text, most - len(ids), begin, start)
            if end > start:
                ids += self.tokenizer.encode(text[start:end])
            begin = end
        return ids

    def _marker(self, token: SpecialToken, path: Path) -> int:
        text = token.default_str()
        ids = self.tokenizer.encode(text)
        if len(ids) != 1:
            raise InputError(
                f"tokenizer.json has no token for {text!r}",
                where=path,
                next="use the tokenizer.json of the official checkpoint",
            )
        return ids[0]


def _message(role: Role, text: str) -> Message:
    try:
        return _MESSAGES[role](text)
    except UnicodeEncodeError:  # bytes of a command line or file that were no UTF-8
        raise InputError("the prompt is not text: it holds bytes that are not UTF-8") from None
