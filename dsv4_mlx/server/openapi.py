"""What the server takes and gives, as an OpenAPI document: the part of it that clients may rely on.

The one model, as clients of both families like it described.
"""

from __future__ import annotations

from typing import Any

from dsv4_mlx import __version__
from dsv4_mlx.server.protocols.fields import Body
from dsv4_mlx.server.protocols.request import ServerInfo

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["system", "user", "assistant"]}, "content": _TEXT},
}
_USER: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"enum": ["user", "assistant"]}, "content": {"type": "string", "minLength": 1}},
}
_SAMPLING: Schema = {
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "seed": {"type": "integer"},
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": _TEXT,
                "type": _TEXT,
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANTHROPIC_ERROR: Schema = {
    "type": "object",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "request_id": _TEXT,
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _TEXT, "message": _TEXT},
        },
    },
}
_USAGE: Schema = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), _COUNT),
}
_CHOICES: Schema = {"type": "array", "minItems": 1, "maxItems": 1, "items": {"type": "object"}}


def _object(required: list[str], **properties: Schema) -> Schema:
    return {"type": "object", "required": required, "properties": properties}


def _answer(schema: Schema, description: str = "The answer.") -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(schema: Schema, *statuses: int) -> Schema:
    return {str(status): _answer(schema, "Refused; the body says why.") for status in statuses}


def _post(name: str, body: Schema, answer: Schema, error: Schema = _ERROR) -> Schema:
    busy = 529 if error is _ANTHROPIC_ERROR else 503
    return {
        "post": {
            "operationId": name,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": _answer(answer), **_errors(error, 400, 401, 403, 413, 415, 429, busy)},
        }
    }


def _get(name: str, answer: Schema, *others: int) -> Schema:
    return {"get": {"operationId": name, "responses": {"200": _answer(answer), **_errors(_ERROR, *others)}}}


def _bodies() -> tuple[Schema, Schema, Schema, Schema]:
    """Of the four protocols."""
    no_stream: Schema = {"const": False}
    chat = _object(
        ["messages"],
        model=_TEXT,
        messages={"type": "array", "minItems": 1, "items": _MESSAGE},
        max_tokens={"type": "integer", "minimum": 1},
        stop={"type": "array", "maxItems": 16, "items": {"type": "string", "maxLength": 256}},
        reasoning_effort={"enum": ["none", "minimal", "low", "medium", "high", "xhigh", "max"]},
        logprobs={"type": "boolean"},
        stream=no_stream,
        **_SAMPLING,
    )
    completion = _object(
        ["prompt"],
        prompt=_TEXT,
        suffix=_TEXT,
        max_tokens={"type": "integer", "minimum": 1},
        stream=no_stream,
        **_SAMPLING,
    )
    responses = _object(
        [],
        input=_TEXT,
        instructions=_TEXT,
        max_output_tokens={"type": "integer", "minimum": 1},
        stream=no_stream,
        **_SAMPLING,
    )
    messages = _object(
        ["messages", "max_tokens"],
        messages={"type": "array", "minItems": 1, "items": _USER},
        max_tokens={"type": "integer", "minimum": 1},
        system=_TEXT,
        stream=no_stream,
        **{k: v for k, v in _SAMPLING.items() if k != "seed"},
    )
    return chat, completion, responses, messages


def document() -> Schema:
    """OpenAPI 3.1. Streams are left out: their events are the protocols' own."""
    chat, completion, responses, messages = _bodies()
    completed = _object(
        ["id", "object", "created", "model", "choices", "usage"],
        id=_TEXT,
        model=_TEXT,
        choices=_CHOICES,
        usage=_USAGE,
    )
    message = _object(
        ["id", "type", "role", "content", "model", "stop_reason", "usage"],
        type={"const": "message"},
        role={"const": "assistant"},
        content={"type": "array", "items": {"type": "object", "required": ["type"]}},
    )
    response = _object(
        ["id", "object", "status", "output", "usage"], object={"const": "response"}, output={"type": "array"}
    )
    count = _object(["input_tokens"], input_tokens=_COUNT)
    tokens = {"type": "array", "items": _COUNT}
    return {
        "openapi": "3.1.0",
        "info": {"title": "dsv4-mlx", "version": __version__},
        "paths": {
            "/v1/chat/completions": _post("chat", chat, completed),
            "/v1/completions": _post("complete", completion, completed),
            "/v1/responses": _post("respond", responses, response),
            "/v1/messages": _post("message", messages, message, _ANTHROPIC_ERROR),
            "/v1/messages/count_tokens": _post("count", messages, count, _ANTHROPIC_ERROR),
            "/v1/models": _get(
                "models", _object(["object", "data"], data={"type": "array", "minItems": 1}), 401, 403
            ),
            "/health": _get("health", _object(["status"], status=_TEXT), 503),
            "/tokenize": _post(
                "tokenize", _object(["content"], content=_TEXT), _object(["tokens"], tokens=tokens)
            ),
            "/detokenize": _post(
                "detokenize", _object(["tokens"], tokens=tokens), _object(["content"], content=_TEXT)
            ),
        },
    }


_RELEASED = (1_776_988_800, "2026-04-24T00:00:00Z")
_PARAMETERS = (
    "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed", "stream",
    "response_format", "structured_outputs", "reasoning_effort", "thinking", "logprobs", "top_logprobs",
)  # fmt: skip


def model(facts: ServerInfo) -> Body:
    """One entry of both families' lists."""
    context = facts.context
    name = "DeepSeek V4 Flash" if facts.model.startswith("deepseek") else facts.model
    return {
        "id": facts.model,
        "object": "model",
        "type": "model",
        "created": _RELEASED[0],
        "created_at": _RELEASED[1],
        "owned_by": "deepseek",
        "lifecycle": "active",
        "display_name": name,
        "max_input_tokens": context,
        "max_tokens": context,
        "context_length": context,
        "max_model_len": context,
        "max_completion_tokens": context,
        "input_modalities": ["text"],
        "supported_parameters": list(_PARAMETERS),
        "meta": {"n_ctx": context, "n_ctx_train": facts.trained},
    }


def listing(facts: ServerInfo) -> Body:
    """Both families' list."""
    one = model(facts)
    return {"object": "list", "data": [one], "has_more": False, "first_id": one["id"], "last_id": one["id"]}


def greeting(facts: ServerInfo) -> Body:
    """What `GET /` says."""
    return {
        "name": "dsv4-mlx",
        "version": __version__,
        "model": facts.model,
        "endpoints": [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/messages",
            "/v1/models",
        ],
    }
