"""Ollama's protocol: its bodies read as Chat or text Completions, its answers as lines of JSON.

What Ollama's own server says of itself and its models, said of this one.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import Any

from dsv4_mlx.server.api_errors import ApiError, invalid, unsupported
from dsv4_mlx.server.protocols.chat import ChatEncoder
from dsv4_mlx.server.protocols.fields import Body, flag, object_of, objects_of, text, whole
from dsv4_mlx.server.protocols.request import ServerInfo
from dsv4_mlx.server.protocols.stream import is_object

VERSION = "0.12.6"  # of the protocol: clients ask for a least one
# options -> fields of Chat Completions
_SAMPLING = {
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed",
    "repeat_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "stop": "stop",
}  # fmt: skip
# How the model is run, which was decided when this server was started.
_RUNNING = frozenset({
    "num_ctx", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv",
    "logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "draft_num_predict",
})  # fmt: skip
# Other ways to draw -> the value that leaves them out.
_OTHER_SAMPLING = {
    "mirostat": 0, "mirostat_tau": None, "mirostat_eta": None, "tfs_z": 1, "typical_p": 1,
    "repeat_last_n": None, "penalize_newline": None,
}  # fmt: skip
_FORMAT = "2024-11-01T00:00:00Z"


class Loaded(Exception):
    """`body` is the answer."""

    def __init__(self, body: Body) -> None:
        super().__init__("the model is loaded")
        self.body = body


def chat_body(body: Body, facts: ServerInfo) -> tuple[Body, tuple[str, ...]]:
    """A body of /api/chat as one of Chat Completions, and what has no effect. Raises ApiError, Loaded."""
    messages = objects_of(body, "messages", facts.options.limits.messages)
    if not messages:
        raise Loaded(_line(_model(body, facts), {"message": _said("")}, done_reason="load"))
    common, notices = _common(body, facts)
    return {**common, "messages": _messages(messages), "tools": _tools(body)}, notices


def generate_body(body: Body, facts: ServerInfo) -> tuple[Body, tuple[str, ...], bool]:
    """A body of /api/generate as one of Chat Completions, or of text Completions where the last is True."""
    prompt, images = text(body, "prompt"), body.get("images") or []
    if not prompt and not images:
        raise Loaded(_line(_model(body, facts), {"response": ""}, done_reason="load"))
    common, notices = _common(body, facts)
    if flag(body, "raw") or text(body, "suffix"):
        kept = {name: common[name] for name in common if name not in ("response_format", "think")}
        return {**kept, "prompt": prompt, "suffix": text(body, "suffix")}, notices, True
    system = text(body, "system")
    before = [{"role": "system", "content": system}] if system else []
    return (
        {**common, "messages": [*before, _message({"role": "user", "content": prompt, "images": images})]},
        notices,
        False,
    )


def _model(body: Body, facts: ServerInfo) -> str:
    return text(body, "model", facts.model).removesuffix(":latest") or facts.model


def _common(body: Body, facts: ServerInfo) -> tuple[Body, tuple[str, ...]]:
    options = object_of(body, "options")
    found: Body = {"model": _model(body, facts), "stream": flag(body, "stream", True)}
    notices = []
    for name, value in options.items():
        if value is None:
            continue
        if name in _SAMPLING:
            found[_SAMPLING[name]] = value
        elif name == "num_predict":
            most = whole(options, name, -2, 1 << 53)
            if most is not None and most > 0:
                found["max_tokens"] = most
        elif name in _RUNNING:
            notices.append(f"options.{name} has no effect here: it was decided when the server was started")
        elif name not in _OTHER_SAMPLING:
            raise invalid(f"options: there is no {name[:40]!r}", "options")
        elif _OTHER_SAMPLING[name] is not None and value != _OTHER_SAMPLING[name]:
            raise unsupported(f"options.{name}: this server does not draw that way", "options")
    think = body.get("think")
    if isinstance(think, str):
        found["reasoning_effort"] = think
    elif think is not None:
        found["thinking"] = {"type": "enabled" if flag(body, "think") else "disabled"}
    form = body.get("format")
    if isinstance(form, dict):
        found["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": form}}
    elif form == "json":
        found["response_format"] = {"type": "json_object"}
    elif form not in (None, ""):
        raise invalid(f"format is {str(form)[:40]!r}, expected json or a JSON Schema", "format")
    return found, tuple(notices)


def _messages(given: list[Body]) -> list[Body]:
    """Calls and results find each other by name and order: Ollama's have no ids, or may have."""
    out: list[Body] = []
    waiting: list[tuple[str, str]] = []  # name and id of calls without a result
    made = 0
    for one in given:
        message = _message(one)
        calls = objects_of(one, "tool_calls", len(given) * 128)
        if calls:
            waiting = []
            for call in calls:
                name = text(object_of(call, "function"), "name")
                waiting.append((name, text(call, "id") or f"call_{made}"))
                made += 1
            pairs = zip(calls, waiting, strict=True)
            message["tool_calls"] = [{**call, "id": id, "type": "function"} for call, (_, id) in pairs]
        if message["role"] == "tool":
            name = text(one, "tool_name") or text(one, "name")
            asked = text(one, "tool_call_id")
            found = next(
                (pair for pair in waiting if asked == pair[1] or (not asked and name in ("", pair[0]))), None
            )
            if found is None and not asked:
                raise invalid("messages: a tool's result has no call before it", "messages")
            if found is not None:
                waiting.remove(found)
            message["tool_call_id"] = asked or (found[1] if found else "")
        out.append(message)
    return out


def _message(one: Body) -> Body:
    said = text(one, "content")
    images = one.get("images") or []
    if not isinstance(images, list):
        raise invalid("images is not an array", "images")
    parts = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}} for _ in images]
    message: Body = {
        "role": text(one, "role", "user"),
        "content": [{"type": "text", "text": said}, *parts] if parts else said,
    }
    if thinking := text(one, "thinking"):
        message["reasoning_content"] = thinking
    return message


def _tools(body: Body) -> list[Body]:
    return [{"type": "function", **tool} for tool in objects_of(body, "tools", 1 << 20)]


def _said(content: str, thinking: str = "", calls: list[Body] | None = None) -> Body:
    found: Body = {"role": "assistant", "content": content}
    if thinking:
        found["thinking"] = thinking
    if calls:
        found["tool_calls"] = calls
    return found


def _line(model: str, said: Body, **ended: Any) -> Body:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"model": model, "created_at": now, **said, "done": bool(ended), **ended}


class OllamaEncoder(ChatEncoder):
    """The chunks of Chat Completions as lines of JSON; calls are told when they are whole."""

    content_type = "application/x-ndjson"

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._begun = self._read = time.monotonic_ns()
        self._calls: dict[int, Body] = {}

    def open(self, cached: int) -> list[str]:
        return self.keep_alive(0, 0)

    def keep_alive(self, done: int, total: int) -> list[str]:
        return [self._frame(self._shaped(""))]

    def started(self, cached: int) -> list[str]:
        self._read = time.monotonic_ns()
        return super().started(cached)

    def event(self, given: Body) -> list[str]:
        choice = given["choices"][0]
        delta = choice["delta"]
        for call in delta.get("tool_calls") or ():
            held = self._calls.setdefault(call["index"], {"id": call.get("id"), "name": "", "arguments": ""})
            held["name"] = held["name"] or call["function"].get("name") or ""
            held["arguments"] += call["function"].get("arguments") or ""
        content, thinking = delta.get("content") or "", self._thinking(delta)
        frames = [self._frame(self._shaped(content, thinking))] if content or thinking else []
        if choice["finish_reason"] is not None:
            calls = _calls([self._calls[at] for at in sorted(self._calls)])
            if calls:
                frames.append(self._frame(self._shaped("", calls=calls)))
            frames.append(self._frame(self._shaped("", ended=choice["finish_reason"])))
        return frames

    def whole(self, given: Body) -> Body:
        choice = given["choices"][0]
        message = choice["message"]
        made = [{"id": call["id"], **call["function"]} for call in message.get("tool_calls") or []]
        said = message.get("content") or "", self._thinking(message), _calls(made)
        return self._shaped(*said, ended=choice["finish_reason"])

    def failed(self, refusal: ApiError, request_id: str) -> list[str]:
        return [self._frame(refusal.body("ollama", request_id))]

    def _thinking(self, message: Body) -> str:
        return (message.get("reasoning_content") or "") if self.ask.thinking.shown else ""

    def _shaped(
        self, content: str, thinking: str = "", calls: list[Body] | None = None, ended: str | None = None
    ) -> Body:
        if self.ask.protocol == "ollama_chat":
            said: Body = {"message": _said(content, thinking, calls)}
        else:
            said = {"response": content, **({"thinking": thinking} if thinking else {})}
        if ended is None:
            return _line(self.ask.model, said)
        now = time.monotonic_ns()
        figures = {
            "total_duration": now - self._begun,
            "load_duration": 0,
            "prompt_eval_count": self.prompt_tokens,
            "prompt_eval_duration": self._read - self._begun,
            "eval_count": self.tokens,
            "eval_duration": now - self._read,
        }
        return _line(self.ask.model, said, done_reason="length" if ended == "length" else "stop", **figures)

    def _frame(self, line: Body) -> str:
        return json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n"


def _calls(made: list[Body]) -> list[Body]:
    """Whole ones, arguments as objects."""
    return [
        {"id": call["id"], "function": {"name": call["name"], "arguments": json.loads(call["arguments"])}}
        for call in made
        if is_object(call["arguments"])
    ]


def _details() -> Body:
    return {
        "parent_model": "", "format": "mlx", "family": "deepseek4", "families": ["deepseek4"],
        "parameter_size": "", "quantization_level": "",
    }  # fmt: skip


def tags(facts: ServerInfo) -> Body:
    """The one model, as /api/tags lists models."""
    return {"models": [_listed(facts)]}


def running(facts: ServerInfo) -> Body:
    """As /api/ps: it is in memory as long as this server runs."""
    return {
        "models": [
            {
                **_listed(facts),
                "expires_at": "2318-01-01T00:00:00Z",
                "size_vram": 0,
                "context_length": facts.context,
            }
        ]
    }


def _listed(facts: ServerInfo) -> Body:
    return {
        "name": facts.model, "model": facts.model, "modified_at": _FORMAT, "size": 0, "digest": "",
        "details": _details(),
    }  # fmt: skip


def show(facts: ServerInfo) -> Body:
    """As /api/show; clients read capabilities and the length of the context."""
    return {
        "modelfile": "", "parameters": "", "template": "", "license": "", "modified_at": _FORMAT,
        "details": _details(),
        "model_info": {"general.architecture": "deepseek4", "deepseek4.context_length": facts.context},
        "capabilities": ["completion", "tools", "thinking", "insert"],
    }  # fmt: skip
