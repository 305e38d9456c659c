"""What a server is told at its start. Frozen: a request changes nothing here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dsv4_mlx.tokenizer.template import Think

MODEL_ID = "deepseek-v4-flash"
MAX_EFFORT_CONTEXT = 393_216  # the context that "max" effort was made for, by the model card
COUNTED = 1 << 20  # tokens that are counted without being answered


def limit(context: int) -> int:
    """Tokens after which a text is not encoded further. Turns as they were sampled may be shorter than their
    text encoded anew, hence not the context itself."""
    return 2 * context


@dataclass(frozen=True)
class ServerLimits:
    """What one request may be. Sizes in bytes, times in seconds."""

    body: int = 32 << 20
    large: int = 1 << 20  # a body above it is read and encoded while no other such one is
    structure: int = 200_000  # of `,[{` outside strings: what a parser makes an object each of
    headers: int = 64 << 10
    depth: int = 64
    messages: int = 10_000
    tools: int = 512  # what grammars hold; a tool of any kind counts
    stops: int = 16
    stop_length: int = 256
    headers_time: float = 30.0
    body_time: float = 120.0
    drain_time: float = 30.0  # a client that takes nothing for so long is dropped
    keep_alive: float = 5.0
    silent_time: float = 10.0  # a plain answer not there by then begins as blank lines
    connections: int = 512
    grace: float = 10.0  # for running answers at the end


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, who may ask, and how to answer what a request leaves open."""

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    allow_unauthenticated: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    sampling: Literal["client", "deepseek"] = "client"
    think: Think = "on"
    strict_model: bool = False
    raw_special_tokens: bool = False
    limits: ServerLimits = field(default_factory=ServerLimits)
