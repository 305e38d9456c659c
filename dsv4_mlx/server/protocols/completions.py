"""Text completions, with `suffix` for filling in the middle: a body -> ParsedRequest. No chat template.

Text completions on the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deepseek_recipe import ChatCompletionRequest, SpecialToken, ThinkingInitialStage

from dsv4_mlx.engine.chooser import Score
from dsv4_mlx.server.api_errors import invalid, unsupported
from dsv4_mlx.server.options import limit
from dsv4_mlx.server.protocols.chat import DONE, ChatEncoder, with_writes
from dsv4_mlx.server.protocols.fields import (
    Body,
    flag,
    most_tokens,
    object_of,
    one_choice,
    stops,
    text,
    whole,
)
from dsv4_mlx.server.protocols.options import ThinkingOptions, sampling
from dsv4_mlx.server.protocols.request import NAME, ParsedRequest, ServerInfo, conversion
from dsv4_mlx.server.protocols.stream import FINGERPRINT, frame
from dsv4_mlx.tokenizer.template import Spelling

DEFAULT_MOST = 256
FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def read(body: Body, facts: ServerInfo, spelling: Spelling) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    one_choice(body)
    before, suffix = _prompt(body.get("prompt", ""), facts), text(body, "suffix")
    echo = flag(body, "echo")
    if echo and suffix:
        raise unsupported("echo and suffix don't go together", "echo")
    given_ids, prompt = _ids(before, suffix, spelling, facts)
    logprobs = whole(body, "logprobs", 0, 20) if not isinstance(body.get("logprobs"), bool) else None
    empty = [{"role": "user", "content": ""}]  # only what parses the answer is taken from this
    given: Body = {
        "model": NAME,
        "messages": empty,
        "thinking": {"type": "disabled"},
        "stop": stops(body, "stop", facts.options.limits),
        "logprobs": logprobs is not None,
    }
    request = ChatCompletionRequest(given).convert(conversion(False))
    parsing = request.parsing_options
    parsing.thinking_initial_stage = ThinkingInitialStage.ContentContinuation  # newlines at the start count
    return ParsedRequest(
        protocol="completions",
        model=text(body, "model", facts.model),
        stream=flag(body, "stream"),
        thinking=ThinkingOptions(None),
        sampling=sampling(body, thinking=False, mode="client", vocabulary=facts.vocabulary),
        max_tokens=most_tokens(body, "max_tokens") or DEFAULT_MOST,
        request=request,
        parsing=parsing,
        prompt=tuple(prompt),
        prompt_text=(before if isinstance(before, str) else spelling.decode(before)) if echo else "",
        echoed=tuple(given_ids) if echo and logprobs is not None else (),
        logprobs=logprobs,
        usage=flag(object_of(body, "stream_options"), "include_usage"),
        hint=str(body.get("user") or "")[:128],
    )


def _prompt(given: Any, facts: ServerInfo) -> str | list[int]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]  # a list of one prompt
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(type(id) is int for id in given):
        wrong = next((id for id in given if not 0 <= id < facts.vocabulary), None)
        if wrong is not None:
            raise invalid(f"prompt holds token {wrong}, expected ids below {facts.vocabulary}", "prompt")
        return given
    if isinstance(given, list) and len(given) > 1:
        raise unsupported(f"prompt has {len(given)} prompts: one at a time", "prompt")
    raise invalid("prompt is not a string, a list of one string, or a list of token ids", "prompt")


def _ids(
    before: str | list[int], suffix: str, spelling: Spelling, facts: ServerInfo
) -> tuple[list[int], list[int]]:
    """The ids that were given, and the whole prompt. Raises ApiError, TooManyTokens."""
    start, most = spelling.begun(""), limit(facts.context)
    encode = spelling.encode_raw if facts.options.raw_special_tokens else spelling.encode
    ids = before if isinstance(before, list) else encode(before, most)
    if not suffix:
        return ids, ids if ids[:1] == start else [*start, *ids]
    begin, hole, end = (spelling.id(marker) for marker in FIM)
    if begin is None or hole is None or end is None:
        raise unsupported("this model's tokenizer has no tokens for filling in the middle", "suffix")
    return ids, [*start, begin, *ids, hole, *spelling.encode(suffix, most), end]


class CompletionsEncoder(ChatEncoder):
    """The library knows no text completions: its chat chunks, reshaped."""

    prefix = "cmpl-"
    _said = 0  # characters in the events so far

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._scores: list[Score] = []

    def scored(self, scores: Sequence[Score]) -> None:
        self._scores += scores

    def event(self, given: Body) -> list[str]:
        choice = given["choices"][0]
        echoed = "role" in choice["delta"]
        text = self.ask.prompt_text if echoed else choice["delta"].get("content") or ""
        if echoed and not text:
            return []
        self._original_spelling(choice)
        shaped = self._shaped(text, choice, self._said, self._echo() if echoed else [])
        self._said += len(text)
        frames = [frame({**shaped, "usage": None} if self.ask.usage else shaped)]
        if choice["finish_reason"] is not None:
            if self.ask.usage:
                frames.append(frame({**shaped, "choices": [], "usage": with_writes(given["usage"])}))
            frames.append(DONE)
        return frames

    def whole(self, given: Body) -> Body:
        choice = given["choices"][0]
        self._original_spelling(choice)
        text = self.ask.prompt_text + (choice["message"].get("content") or "")
        shaped = self._shaped(text, choice, len(self.ask.prompt_text), self._echo())
        return {**shaped, "usage": with_writes(given["usage"])}

    def _echo(self) -> list[Body]:
        """The prompt's tokens; the first has nothing before it unless a marker was put there."""
        ids, spelt = self.ask.echoed, self.spelling
        scores: list[Score | None] = [None, *self._scores]
        return [
            _entry(spelt.decode([id]), score, spelt)
            for id, score in zip(ids, scores[-len(ids) - 1 : -1], strict=True)
        ]

    def _shaped(self, text: str, choice: Body, at: int, echo: list[Body]) -> Body:
        new = (choice.get("logprobs") or {}).get("content") or []
        ended = self._scores and choice["finish_reason"] == "stop" and not self.tokens
        end = [_entry(SpecialToken.Eos.default_str(), self._scores[-1], self.spelling)] if ended else []
        entry = {
            "text": text,
            "index": 0,
            "logprobs": _legacy([*echo, *new, *end], 0 if echo else at),
            "finish_reason": choice["finish_reason"],
        }
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.ask.model,
            "system_fingerprint": FINGERPRINT,
            "choices": [entry],
        }


def _entry(token: str, score: Score | None, spelling: Spelling) -> Body:
    """A token as the library tells the sampled ones; None: there was nothing before it."""
    if score is None:
        return {"token": token, "logprob": None, "top_logprobs": None}
    top = [{"token": spelling.decode([id]), "logprob": value} for id, value in score[1]]
    return {"token": token, "logprob": score[0], "top_logprobs": top}


def _legacy(entries: list[Body], at: int) -> Body | None:
    if not entries:
        return None
    offsets = []
    for entry in entries:
        offsets.append(at)
        at += len(entry["token"])
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [
            None
            if entry["top_logprobs"] is None
            else {t["token"]: t["logprob"] for t in entry["top_logprobs"]}
            for entry in entries
        ],
        "text_offset": offsets,
    }
