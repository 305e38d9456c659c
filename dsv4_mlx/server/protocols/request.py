"""What a request wants, whichever protocol it came in: the hand-over from reading to running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from deepseek_recipe import (
    Conversation,
    ConversationRequest,
    ConversionError,
    ConversionOptions,
    ModelVersion,
    ParsingOptions,
    ResponsesEcho,
    WebSearchBehavior,
)

from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.grammar.rules import Json, Regex, Rule, ToolCalls
from dsv4_mlx.server.api_errors import ApiError, Family, invalid
from dsv4_mlx.server.options import ServerOptions
from dsv4_mlx.server.protocols.options import ThinkingOptions
from dsv4_mlx.tokenizer.template import Level

ProtocolName = Literal["chat", "completions", "responses", "messages", "ollama_chat", "ollama_generate"]
NAME = "dsv4"  # the model's name inside the library: what the client calls it is only echoed
PROMPT_PARAM: dict[ProtocolName, str] = {
    "chat": "messages", "completions": "prompt", "responses": "input", "messages": "messages",
    "ollama_chat": "messages", "ollama_generate": "prompt",
}  # fmt: skip


@dataclass(frozen=True)
class ServerInfo:
    """What reading a request needs to know of the server and its model."""

    options: ServerOptions
    model: str  # the id that is listed
    levels: Mapping[Level, Level]  # effort as said -> the word whose text this checkpoint was trained on
    vocabulary: int
    context: int  # tokens of this server
    trained: int  # tokens that the model was made for


@dataclass(frozen=True)
class ToolOptions:
    """`declared`: a JSON array of Chat Completions function tools, as the model sees their names.

    `must`: None the model may call; "" it must call one; a name: it must call this one. `one`: the turn ends
    with the first call. `customs`: those of the declared whose argument is the text of a custom tool.
    """

    declared: str = "[]"
    offered: bool = False
    must: str | None = None
    one: bool = False
    customs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ParsedRequest:
    """A request that has been read. `prompt` is text-completion's ids, else `conversation` gives them."""

    protocol: ProtocolName
    model: str
    stream: bool
    thinking: ThinkingOptions
    sampling: SamplingOptions
    max_tokens: int | None
    request: ConversationRequest
    parsing: ParsingOptions
    conversation: Conversation | None = None
    prompt: tuple[int, ...] = ()
    prompt_text: str = ""
    echoed: tuple[int, ...] = ()  # ids of the prompt that come back with their log probabilities
    handles: Mapping[int, str] = field(default_factory=dict)
    tools: ToolOptions = ToolOptions()
    wanted: Json | Regex | None = None
    logprobs: int | None = None
    usage: bool = True  # whether a stream ends with the usage
    hint: str = ""
    echo: ResponsesEcho | None = None
    namespaces: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    notices: tuple[str, ...] = ()  # what of it has no effect on the answer

    @property
    def rule(self) -> Rule | None:
        """What the answer, after the thinking, must be."""
        tools = self.tools
        if not tools.offered:
            return self.wanted
        return ToolCalls(
            tools.declared,
            required=tools.must is not None,
            name=tools.must or None,
            parallel=not tools.one,
            content=self.wanted,
        )

    @property
    def family(self) -> Family:
        if self.protocol.startswith("ollama"):
            return "ollama"
        return "anthropic" if self.protocol == "messages" else "openai"


def conversion(default_thinking: bool = True) -> ConversionOptions:
    """How the library reads bodies for us."""
    options = ConversionOptions(
        default_thinking_mode=default_thinking, messages_web_search=WebSearchBehavior.Drop
    )
    return options.with_model_alias(NAME, ModelVersion.DeepseekV4Pro)


def refused(error: Exception) -> ApiError:
    """The library's complaint about a body -> ours."""
    if isinstance(error, ConversionError):
        return invalid(str(error))
    return invalid(str(error).removeprefix("invalid request body: "), code="invalid_request_error")


def conversation_for(
    request: ConversationRequest, thinking: ThinkingOptions, levels: Mapping[Level, Level], **changes: object
) -> Conversation:
    """The library's conversation with the effort word this checkpoint knows."""
    given = request.conversation
    word = None if thinking.level is None else levels[thinking.level]
    form: dict[str, object] = {}
    if given.response_format == "json_object":
        form["response_format"] = "json_object"
    elif given.response_schema is not None:
        form["response_schema"] = given.response_schema
    elif given.response_regex is not None:
        form["response_regex"] = given.response_regex
    settings: dict[str, object] = {
        "thinking_mode": thinking.on,
        "tools": given.tools,
        "tool_choice": given.tool_choice,
        "reasoning_effort": word,
        **form,
        **changes,
    }
    messages = settings.pop("messages", given.messages)
    return Conversation(messages, **settings)  # type: ignore[arg-type]
