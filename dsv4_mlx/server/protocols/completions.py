"""Text completions, with `suffix` for filling in the middle: a body -> ParsedRequest. No chat template."""

from __future__ import annotations

from typing import Any

from deepseek_recipe import ChatCompletionRequest, ThinkingInitialStage

from dsv4_mlx.server.api_errors import invalid, unsupported
from dsv4_mlx.server.protocols.fields import (
    Body,
    flag,
    most_tokens,
    object_of,
    one_choice,
    stops,
    text,
    whole,
)
from dsv4_mlx.server.protocols.options import ThinkingOptions, sampling
from dsv4_mlx.server.protocols.request import NAME, ParsedRequest, ServerInfo, conversion
from dsv4_mlx.tokenizer.template import Spelling

DEFAULT_MOST = 256
FIM = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")


def read(body: Body, facts: ServerInfo, spelling: Spelling) -> ParsedRequest:
    """Raises ApiError 400 for what can't be done; fields nobody knows are ignored."""
    one_choice(body)
    before, suffix = _prompt(body.get("prompt", ""), facts), text(body, "suffix")
    if flag(body, "echo") and suffix:
        raise unsupported("echo and suffix don't go together", "echo")
    prompt = _ids(before, suffix, spelling, facts.options.raw_special_tokens)
    logprobs = whole(body, "logprobs", 0, 20) if not isinstance(body.get("logprobs"), bool) else None
    empty = [{"role": "user", "content": ""}]  # only what parses the answer is taken from this
    given: Body = {
        "model": NAME,
        "messages": empty,
        "thinking": {"type": "disabled"},
        "stop": stops(body, "stop", facts.options.limits),
        "logprobs": logprobs is not None,
    }
    request = ChatCompletionRequest(given).convert(conversion(False))
    parsing = request.parsing_options
    parsing.thinking_initial_stage = ThinkingInitialStage.ContentContinuation  # newlines at the start count
    return ParsedRequest(
        protocol="completions",
        model=text(body, "model", facts.model),
        stream=flag(body, "stream"),
        thinking=ThinkingOptions(None),
        sampling=sampling(body, thinking=False, mode="client", vocabulary=facts.vocabulary),
        max_tokens=most_tokens(body, "max_tokens") or DEFAULT_MOST,
        request=request,
        parsing=parsing,
        prompt=tuple(prompt),
        prompt_text=before if flag(body, "echo") and isinstance(before, str) else "",
        logprobs=logprobs,
        usage=flag(object_of(body, "stream_options"), "include_usage"),
        hint=str(body.get("user") or "")[:128],
    )


def _prompt(given: Any, facts: ServerInfo) -> str | list[int]:
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str | list):
        given = given[0]  # a list of one prompt
    if isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(type(id) is int for id in given):
        wrong = next((id for id in given if not 0 <= id < facts.vocabulary), None)
        if wrong is not None:
            raise invalid(f"prompt holds token {wrong}, expected ids below {facts.vocabulary}", "prompt")
        return given
    if isinstance(given, list) and len(given) > 1:
        raise unsupported(f"prompt has {len(given)} prompts: one at a time", "prompt")
    raise invalid("prompt is not a string, a list of one string, or a list of token ids", "prompt")


def _ids(before: str | list[int], suffix: str, spelling: Spelling, raw: bool) -> list[int]:
    start = spelling.begun("")
    ids = (
        before
        if isinstance(before, list)
        else spelling.encode_raw(before)
        if raw
        else spelling.encode(before)
    )
    if not suffix:
        return ids if ids[:1] == start else [*start, *ids]
    begin, hole, end = (spelling.id(marker) for marker in FIM)
    if begin is None or hole is None or end is None:
        raise unsupported("this model's tokenizer has no tokens for filling in the middle", "suffix")
    return [*start, begin, *ids, hole, *spelling.encode(suffix), end]
