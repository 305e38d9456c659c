"""One turn through the product: a conversation in, what the model said out. Greedy, free-running."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_recipe import Conversation

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.tokenizer.output_parser import TextParser

GREEDY = SamplingOptions(temperature=0.0)
LIMIT = 200  # tokens; the longest turn ever trained has about 110


@dataclass(frozen=True)
class Turn:
    thinking: str
    answer: str
    tools: str  # name and arguments of every call, as the library parsed them
    stopped: bool  # by itself
    prompt: list[int]
    said: list[int]


def say(engine: Engine, conversation: Conversation) -> Turn:
    prompt = engine.prompts.encode(conversation)
    parser = TextParser(conversation, engine.prompts.spelling)
    parts = {"thinking": "", "answer": "", "tool": ""}
    said = []
    for token in generate(engine.session(), prompt, GREEDY, max_tokens=LIMIT):
        said.append(token)
        for piece in parser.push(token):
            parts[piece.kind] += piece.text
    stopped = len(said) < LIMIT
    for piece in parser.finish(length=not stopped):
        parts[piece.kind] += piece.text
    return Turn(parts["thinking"], parts["answer"], parts["tool"], stopped, prompt, said)
