"""Responses on the wire."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from deepseek_recipe import InferenceChunk, ResponsesRequest, ResponsesResponse, StreamProcessor

from dsv4_mlx.scheduler.turn_cache import Call, Said
from dsv4_mlx.server.api_errors import Refusal
from dsv4_mlx.server.protocols.body import Body
from dsv4_mlx.server.protocols.stream import Wire, frame, is_object


class ResponsesWire(Wire):
    prefix = "resp_"
    _opened: Body | None = None  # the response as it was first told
    _sequence = 0

    def generator(self) -> Any:
        made = ResponsesRequest.chunk_generator(self.ask.request, self.id, self.ask.model)
        if self.ask.namespaces:
            made = made.with_namespace_tool_map(with_bare_names(self.ask.namespaces))
        return made if self.ask.echo is None else made.with_echo(self.ask.echo)

    def accumulator(self) -> Any:
        return ResponsesResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def open(self, cached: int) -> list[str]:
        stream = StreamProcessor(self.generator(), self.ask.parsing, self.spelling.tokenizer)
        events = [json.loads(event.to_json()) for event in stream.push(InferenceChunk.ready())]
        first = [event for event in events if "response" in event]
        frames = [text for event in first for text in self.event(event)]
        self._opened = first[0]["response"]
        return frames

    def keep_alive(self, done: int, total: int) -> list[str]:
        """A real event: idle timers of clients are not re-armed by comments."""
        assert self._opened is not None  # noqa: S101 - `open` comes first
        return self._numbered({"type": "response.in_progress", "response": self._opened})

    def event(self, given: Body) -> list[str]:
        if self._opened is not None and given["type"] in ("response.created", "response.in_progress"):
            return []
        if response := given.get("response"):
            self._complete(response)
        return self._numbered(given)

    def whole(self, given: Body) -> Body:
        self._complete(given)
        if self.unfinished:
            given["output"] = [
                i for i in given["output"] if i["type"] != "function_call" or is_object(i["arguments"])
            ]
        return given

    def said(self) -> Said:
        items = json.loads(self._answer.to_json())["output"]
        reasoning = "".join(p["text"] for i in items if i["type"] == "reasoning" for p in i["content"])
        content = "".join(p["text"] for i in items if i["type"] == "message" for p in i["content"])
        calls = (i for i in items if i["type"] in ("function_call", "custom_tool_call"))
        return Said(reasoning, content, tuple(_call(i) for i in calls))

    def failed(self, refusal: Refusal, request_id: str) -> list[str]:
        frames = [] if self._opened is not None else self.open(0)
        assert self._opened is not None  # noqa: S101 - just done
        error = {
            "code": "rate_limit_exceeded" if refusal.status == 429 else "server_error",
            "message": str(refusal),
        }
        failed = {**self._opened, "status": "failed", "error": error}
        return [*frames, *self._numbered({"type": "response.failed", "response": failed})]

    def _numbered(self, event: Body) -> list[str]:
        event["sequence_number"] = self._sequence
        self._sequence += 1
        return [frame(event, event["type"])]

    def _complete(self, response: Body) -> None:
        response["created_at"] = self.created
        if usage := response.get("usage"):
            details = usage["input_tokens_details"]
            details.setdefault("cache_write_tokens", usage["input_tokens"] - details["cached_tokens"])


def with_bare_names(namespaces: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """The model may leave the namespace out: a local name that only one namespace has is understood."""
    counts = Counter(local for _, local in namespaces.values())
    bare = {local: (space, local) for space, local in namespaces.values() if counts[local] == 1}
    return {**bare, **namespaces}


def _call(item: Body) -> Call:
    name = f"{item['namespace']}__{item['name']}" if item.get("namespace") else item["name"]
    if item["type"] == "custom_tool_call":
        return Call(item["call_id"], name, json.dumps({"input": item["input"]}, ensure_ascii=False))
    return Call(item["call_id"], name, item["arguments"])
