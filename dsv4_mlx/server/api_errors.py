"""What the server says when it can't do what was asked, in the shape of each protocol's family."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dsv4_mlx.errors import DoesNotFit, Dsv4Error, InputError, UsageError
from dsv4_mlx.scheduler.request import QueueFull, Unavailable

Family = Literal["openai", "anthropic", "ollama"]

# status -> (OpenAI's type, Anthropic's type); where a family has a status of its own it is in _STATUS
_TYPES: dict[int, tuple[str, str]] = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("authentication_error", "authentication_error"),
    403: ("permission_error", "permission_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    426: ("invalid_request_error", "invalid_request_error"),
    431: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}
_STATUS: dict[tuple[Family, int], int] = {("anthropic", 503): 529}


@dataclass(eq=False)  # not frozen: raising an exception sets its traceback
class ApiError(Exception):
    """`status` as OpenAI's family has it. `extra` goes into OpenAI's error object."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    anthropic: str | None = None  # the wording that this family's clients read, where it differs
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def status_for(self, family: Family) -> int:
        return _STATUS.get((family, self.status), self.status)

    def headers(self) -> dict[str, str]:
        """Headers of the answer besides the usual ones."""
        if self.retry_after is None:
            return {}
        return {"retry-after": str(max(1, round(self.retry_after)))}

    def body(self, family: Family, request_id: str) -> dict[str, Any]:
        """The JSON object of the answer, or of a stream's last event."""
        if family == "ollama":
            return {"error": self.message}
        openai, anthropic = _TYPES[self.status]
        if family == "anthropic":
            said = {"type": anthropic, "message": self.anthropic or self.message}
            return {"type": "error", "error": said, "request_id": request_id}
        error: dict[str, Any] = {
            "message": self.message,
            "type": openai,
            "param": self.param,
            "code": self.code,
        }
        return {"error": {**error, **self.extra}}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400 for a value that is not what it should be."""
    return ApiError(400, code, message, param)


def unsupported(message: str, param: str | None = None) -> ApiError:
    """400 for what this server does not do."""
    return ApiError(400, "unsupported_value", message, param)


def too_long(prompt: int, context: int, param: str, *, more: bool = False) -> ApiError:
    """400 for a prompt that leaves no room. Clients of both families read the two numbers out of the text.

    more: it was counted no further than `prompt`.
    """
    resulted = f"{prompt} tokens or more" if more else f"{prompt} tokens"
    return ApiError(
        400,
        "context_length_exceeded",
        f"This model's maximum context length is {context} tokens. However, your messages resulted in "
        f"{resulted}. Shorten them, or start the server with a larger --context.",
        param,
        anthropic=f"prompt is too long: {prompt} tokens > {context} maximum",
        extra={"n_prompt_tokens": prompt, "n_ctx": context},
    )


def from_error(error: BaseException, log: str | None = None) -> ApiError:
    """A failure of this program -> what the client is told. Bugs are 500 without their details."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFull):
        return ApiError(429, "queue_full", error.message, retry_after=error.retry_after)
    if isinstance(error, Unavailable):
        return ApiError(503, "unavailable", error.message, retry_after=5)
    if isinstance(error, InputError | UsageError | DoesNotFit):
        return invalid(error.message)
    if isinstance(error, Dsv4Error):
        return ApiError(500, "internal_error", error.message)
    where = "" if log is None else f"; the details are in {log} on its machine"
    return ApiError(500, "internal_error", f"the server failed ({type(error).__name__}){where}")
