"""Messages on the wire."""

from __future__ import annotations

import json
from typing import Any

from deepseek_recipe import InferenceChunk, MessagesRequest, MessagesResponse, PromptUsage, StreamProcessor

from dsv4_mlx.scheduler.turn_cache import Call, Said
from dsv4_mlx.server.api_errors import Refusal
from dsv4_mlx.server.protocols.body import Body
from dsv4_mlx.server.protocols.stream import Wire, frame

PING = frame({"type": "ping"}, "ping")


class MessagesWire(Wire):
    prefix = "msg_"
    _opened = False

    def generator(self) -> Any:
        made = MessagesRequest.chunk_generator(self.ask.request, self.id, self.ask.model)
        return made.with_signature(self.handle)

    def accumulator(self) -> Any:
        return MessagesResponse(self.id, self.ask.model, self.created, self.prompt_tokens, self.cached)

    def open(self, cached: int) -> list[str]:
        """message_start goes out before the prompt is computed: pings are legal after it only.

        It tells what is cached if that is known by then; message_delta has the final numbers.
        """
        self._opened = True
        stream = StreamProcessor(self.generator(), self.ask.parsing, self.spelling.tokenizer)
        usage = PromptUsage(prompt_tokens=self.prompt_tokens, prompt_cache_hit_tokens=cached)
        events = [json.loads(e.to_json()) for e in stream.push(InferenceChunk.ready(prompt_usage=usage))]
        return [*(frame(e, e["type"]) for e in events if e["type"] == "message_start"), PING]

    def keep_alive(self, done: int, total: int) -> list[str]:
        return [PING]

    def event(self, given: Body) -> list[str]:
        if given["type"] == "ping" or given["type"] == "message_start" and self._opened:
            return []
        if (
            given["type"] == "message_delta"
            and self.unfinished
            and given["delta"]["stop_reason"] == "tool_use"
        ):
            given["delta"]["stop_reason"] = "max_tokens"
        return [frame(given, given["type"])]

    def whole(self, given: Body) -> Body:
        if self.unfinished and given["content"] and given["content"][-1]["type"] == "tool_use":
            del given["content"][-1]  # a call that was cut off is not one to execute
        return given

    def said(self) -> Said:
        blocks = json.loads(self._answer.to_json())["content"]
        texts = {kind: "".join(b[kind] for b in blocks if b["type"] == kind) for kind in ("thinking", "text")}
        calls = (b for b in blocks if b["type"] == "tool_use")
        made = (Call(b["id"], b["name"], json.dumps(b["input"], ensure_ascii=False)) for b in calls)
        return Said(texts["thinking"], texts["text"], tuple(made))

    def failed(self, refusal: Refusal, request_id: str) -> list[str]:
        return [frame(refusal.body("anthropic", request_id), "error")]
