"""Chat Completions and text completions on the wire."""

from __future__ import annotations

from typing import Any

from deepseek_recipe import ChatCompletionRequest, ChatCompletionResponse

from dsv4_mlx.scheduler.turn_cache import Call, Said
from dsv4_mlx.server.api_errors import Refusal
from dsv4_mlx.server.protocols.body import Body
from dsv4_mlx.server.protocols.stream import FINGERPRINT, Wire, frame, is_object

DONE = "data: [DONE]\n\n"


class ChatWire(Wire):
    prefix = "chatcmpl-"

    def generator(self) -> Any:
        return ChatCompletionRequest.chunk_generator(self.ask.request, self.id, self.ask.model)

    def accumulator(self) -> Any:
        return ChatCompletionResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def event(self, given: Body) -> list[str]:
        given["created"] = self.created
        usage = given.pop("usage", None)
        choice = given["choices"][0]
        if not self.ask.thinking.shown and not _without_reasoning(choice["delta"]):
            return []
        self._original_spelling(choice)
        if self.ask.usage:
            given["usage"] = None
        frames = [frame(given)]
        if choice["finish_reason"] is not None:
            if self.ask.usage:
                frames.append(frame({**given, "choices": [], "usage": with_writes(usage)}))
            frames.append(DONE)
        return frames

    def whole(self, given: Body) -> Body:
        choice = given["choices"][0]
        message = choice["message"]
        calls = [
            call for call in message.pop("tool_calls", None) or [] if is_object(call["function"]["arguments"])
        ]
        for call in calls:
            call.pop("index", None)
        if calls:
            message["tool_calls"] = calls
        if not self.ask.thinking.shown:
            _without_reasoning(message)
        message["content"] = message.get("content") or ""
        self._original_spelling(choice)
        given["usage"] = with_writes(given["usage"])
        return given

    def said(self) -> Said:
        import json

        message = json.loads(self._answer.to_json())["choices"][0]["message"]
        calls = message.get("tool_calls") or []
        made = (Call(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in calls)
        return Said(message.get("reasoning_content") or "", message.get("content") or "", tuple(made))

    def failed(self, refusal: Refusal, request_id: str) -> list[str]:
        return [frame(refusal.body("openai", request_id))]

    def _original_spelling(self, choice: Body) -> None:
        """Markers among the alternatives come in the parser's spelling."""
        logprobs = choice.get("logprobs")
        for entries in (logprobs or {}).values():
            for entry in entries or ():
                for one in (entry, *entry.get("top_logprobs", ())):
                    text = self.spelling.original(one["token"])
                    if text != one["token"]:
                        one |= {"token": text, "bytes": list(text.encode())}


def _without_reasoning(message: Body) -> bool:
    """Take the thinking out; whether anything is left to say."""
    hidden = message.pop("reasoning_content", None)
    return not hidden or bool(message.get("content")) or "tool_calls" in message or "role" in message


def with_writes(usage: Body) -> Body:
    """Usage with the prompt tokens that were computed, and so are cached now."""
    details = {**usage["prompt_tokens_details"], "cache_write_tokens": usage["prompt_cache_miss_tokens"]}
    return {**usage, "prompt_tokens_details": details}


class CompletionsWire(ChatWire):
    """The library knows no text completions: its chat chunks, reshaped."""

    prefix = "cmpl-"
    _said = 0  # characters in the events so far

    def event(self, given: Body) -> list[str]:
        choice = given["choices"][0]
        echoed = "role" in choice["delta"]
        text = self.ask.prompt_text if echoed else choice["delta"].get("content") or ""
        if echoed and not text:
            return []
        self._original_spelling(choice)
        shaped = self._shaped(text, choice, self._said)
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
        return {**self._shaped(text, choice, len(self.ask.prompt_text)), "usage": with_writes(given["usage"])}

    def _shaped(self, text: str, choice: Body, at: int) -> Body:
        entry = {
            "text": text,
            "index": 0,
            "logprobs": _legacy(choice.get("logprobs"), at),
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


def _legacy(logprobs: Body | None, at: int) -> Body | None:
    entries = (logprobs or {}).get("content")
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
            {top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries
        ],
        "text_offset": offsets,
    }
