"""Bytes of a request -> Ask -> the job for the engine thread. Blocks: kept off the event loop."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

from dsv4_mlx.engine.session import room_for_answer
from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.scheduler.request import GenerationRequest
from dsv4_mlx.scheduler.turn_cache import TurnCache
from dsv4_mlx.server.api_errors import ApiError, invalid, too_long
from dsv4_mlx.server.options import COUNTED, MAX_EFFORT_CONTEXT, limit
from dsv4_mlx.server.protocols import chat, completions, messages, ollama, responses
from dsv4_mlx.server.protocols.chat import ChatEncoder
from dsv4_mlx.server.protocols.completions import CompletionsEncoder
from dsv4_mlx.server.protocols.content import notices
from dsv4_mlx.server.protocols.fields import Body, parse
from dsv4_mlx.server.protocols.messages import MessagesEncoder
from dsv4_mlx.server.protocols.ollama import OllamaEncoder
from dsv4_mlx.server.protocols.request import PROMPT_PARAM, ParsedRequest, ProtocolName, ServerInfo
from dsv4_mlx.server.protocols.responses import ResponsesEncoder
from dsv4_mlx.server.protocols.stream import StreamEncoder
from dsv4_mlx.tokenizer.template import Prompts, Spelling, TooManyTokens

log = logging.getLogger("dsv4_mlx.server")

ENCODERS: dict[ProtocolName, type[StreamEncoder]] = {
    "chat": ChatEncoder,
    "completions": CompletionsEncoder,
    "responses": ResponsesEncoder,
    "messages": MessagesEncoder,
    "ollama_chat": OllamaEncoder,
    "ollama_generate": OllamaEncoder,
}


class Translator:
    """Reads requests for one model. Safe for several threads."""

    def __init__(self, facts: ServerInfo, spelling: Spelling, grammars: Grammars, turns: TurnCache) -> None:
        self.facts, self.spelling, self.grammars, self.turns = facts, spelling, grammars, turns
        self._said: set[str] = set()
        self._lock = threading.Lock()

    @staticmethod
    def of(folder: Path, facts: ServerInfo, prompts: Prompts) -> Translator:
        """For the model in `folder`, with nothing remembered yet. Raises InputError."""
        grammars = Grammars(folder, facts.vocabulary, prompts.markers)
        return Translator(facts, prompts.spelling, grammars, TurnCache(prompts))

    def read(self, protocol: ProtocolName, raw: bytes | bytearray) -> ParsedRequest:
        """Raises ApiError."""
        body = parse(raw, self.facts.options.limits)
        try:
            return self._read(protocol, body)
        except TooManyTokens as error:
            raise too_long(error.count, self.facts.context, PROMPT_PARAM[protocol], more=True) from None

    def _read(self, protocol: ProtocolName, body: Body) -> ParsedRequest:
        said = notices(protocol, body)
        if protocol == "chat":
            ask = chat.read(body, self.facts)
        elif protocol == "messages":
            ask = messages.read(body, self.facts)
        elif protocol == "responses":
            ask = responses.read(body, self.facts)
        elif protocol == "completions":
            ask = completions.read(body, self.facts, self.spelling)
        else:
            ask, more = self._ollama(protocol, body)
            said = (*said, *more)
        self.check_model(ask.model)
        if ask.thinking.level == "max" and self.facts.context < MAX_EFFORT_CONTEXT:
            short = (
                f'effort "max" is made for a context of {MAX_EFFORT_CONTEXT} tokens, this server has '
                f"{self.facts.context}: kept, but thinking may run out of room"
            )
            self._once(short)
            said = (*said, short)
        return replace(ask, notices=said)

    def _ollama(self, protocol: ProtocolName, body: Body) -> tuple[ParsedRequest, tuple[str, ...]]:
        if protocol == "ollama_chat":
            given, said = ollama.chat_body(body, self.facts)
            plain = False
        else:
            given, said, plain = ollama.generate_body(body, self.facts)
        read = completions.read(given, self.facts, self.spelling) if plain else chat.read(given, self.facts)
        return replace(read, protocol=protocol), (*said, *notices("completions" if plain else "chat", given))

    def count(self, ask: ParsedRequest) -> int:
        """Tokens of the prompt, be they more than the context. Raises ApiError above COUNTED."""
        return len(self._rendered(ask, max(COUNTED, limit(self.facts.context))))

    def _rendered(self, ask: ParsedRequest, most: int) -> tuple[int, ...]:
        if ask.conversation is None:
            return ask.prompt
        try:
            return self.turns.render(ask.conversation, ask.handles, most).ids
        except TooManyTokens as error:
            raise too_long(error.count, self.facts.context, PROMPT_PARAM[ask.protocol], more=True) from None
        except InputError as error:
            raise invalid(error.message, PROMPT_PARAM[ask.protocol]) from None

    def prompt(self, ask: ParsedRequest) -> tuple[int, ...]:
        """The prompt's ids. Raises ApiError if they leave no room for an answer."""
        ids = self._rendered(ask, limit(self.facts.context))
        if not room_for_answer(len(ids), self.facts.context):
            raise too_long(len(ids), self.facts.context, PROMPT_PARAM[ask.protocol])
        return ids

    def job(self, ask: ParsedRequest) -> GenerationRequest:
        """Raises ApiError for a prompt that is too long and for a form that can't be enforced."""
        ids = self.prompt(ask)
        stage = ask.parsing.thinking_initial_stage
        thinking = stage is not None and stage.starts_in_reasoning()
        constraint = None
        if ask.rule is not None:
            try:
                constraint = self.grammars.constraint(ask.rule, thinking=thinking)
            except InputError as error:
                raise invalid(error.message, "tools" if ask.tools.offered else "response_format") from None
        sampling = ask.sampling if ask.tools.offered else ask.sampling.without(self.spelling.dsml)
        return GenerationRequest(
            prompt=ids,
            sampling=sampling,
            max_tokens=ask.max_tokens,
            constraint=constraint,
            logprobs=ask.logprobs,
            think_budget=ask.thinking.budget,
            hint=ask.hint,
            prompt_logprobs=ask.logprobs if ask.echoed else None,
        )

    def encoder(self, ask: ParsedRequest, job: GenerationRequest) -> StreamEncoder:
        """For one turn."""
        return ENCODERS[ask.protocol](ask, self.turns.handle(), len(job.prompt), self.spelling)

    def check_model(self, name: str) -> None:
        """Raises ApiError 404 for a name that is not answered."""
        if name == self.facts.model:
            return
        if self.facts.options.strict_model:
            raise ApiError(
                404, "model_not_found", f"there is no model {name[:80]!r}, only {self.facts.model}", "model"
            )
        self._once(f"requests name the model {name[:80]!r}: answered by {self.facts.model}")

    def _once(self, message: str) -> None:
        with self._lock:
            if message in self._said or len(self._said) > 100:
                return
            self._said.add(message)
        log.warning("%s", message)
