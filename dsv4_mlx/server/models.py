"""The one model, as clients of both families like it described."""

from __future__ import annotations

from dsv4_mlx import __version__
from dsv4_mlx.server.protocols.body import Body
from dsv4_mlx.server.protocols.request import Facts

_RELEASED = (1_776_988_800, "2026-04-24T00:00:00Z")
_PARAMETERS = (
    "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "temperature", "top_p", "top_k", "min_p",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias", "stop", "seed", "stream",
    "response_format", "structured_outputs", "reasoning_effort", "thinking", "logprobs", "top_logprobs",
)  # fmt: skip


def model(facts: Facts) -> Body:
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


def listing(facts: Facts) -> Body:
    """Both families' list."""
    one = model(facts)
    return {"object": "list", "data": [one], "has_more": False, "first_id": one["id"], "last_id": one["id"]}


def greeting(facts: Facts) -> Body:
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
