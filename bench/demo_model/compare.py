"""Two models on the same prompts, and how often the MTP block's draft is what the trunk says."""

from __future__ import annotations

import random

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from bench.demo_model.checks import Score, conversation
from bench.demo_model.talk import LIMIT
from bench.demo_model.tasks import FACTS, needle, tool_dialogue
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.tokenizer.template import THINK

Prompt = list[int]


def array(value: npt.NDArray[np.generic]) -> mx.array:
    return mx.array(value.astype(np.int32) if value.dtype == np.int64 else value)


def prompts(engine: Engine, r: random.Random, count: int) -> list[Prompt]:
    """The eval's kinds of text: facts in three modes, tools, needles."""
    found = []
    for i in range(count):
        think = THINK[i % 3]
        fact = r.choice(FACTS)
        found.append(engine.prompts.encode(engine.prompts.ask(r.choice(fact.questions(trained=True)), think)))
        dialogue = tool_dialogue(r, "off", 1, 1, seen=False) if i % 2 else needle(r, 512, 8, 1, seen=False)
        for end in (1, 3) if i % 2 else (1,):
            found.append(engine.prompts.encode(conversation(engine, dialogue, dialogue.messages[:end])))
    return found


def greedy(engine: Engine, prompt: Prompt, limit: int = LIMIT) -> tuple[Prompt, npt.NDArray[np.float32]]:
    """What the model says in at most `limit` tokens, and its logits before each of them."""
    session = engine.session()
    row = session.sync(prompt)
    said, rows = [], []
    for _ in range(limit):
        rows.append(row)
        said.append(int(np.argmax(row)))
        if said[-1] == engine.prompts.markers.end:
            break
        row = session.advance(said[-1])
    return said, np.stack(rows)


def differences(one: Engine, other: Engine, texts: list[Prompt], limit: int = LIMIT) -> str:
    """How many answers are the same, token for token; how far first-token logits and argmaxes are apart."""
    same, largest = 0, 0.0
    for prompt in texts:
        (a, rows_a), (b, rows_b) = (greedy(engine, prompt, limit) for engine in (one, other))
        same += a == b
        shared = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        n = min(shared + 1, len(rows_a), len(rows_b))
        largest = max(largest, float(np.abs(rows_a[:n] - rows_b[:n]).max()))
    return f"{same}/{len(texts)} answers the same, logits differ by at most {largest:.2g}"


def accepted(engine: Engine, texts: list[Prompt]) -> Score:
    """A real loop: after each step the MTP block drafts the token after next; the trunk then says its own."""
    score = Score()
    model, end = engine.model, engine.prompts.markers.end
    for prompt in texts:
        state = model.new_state()
        tokens, draft = prompt, None
        for _ in range(LIMIT):
            start = state.length
            streams = model.streams(mx.array([tokens], mx.int32), state)
            chosen = _best(model.logits(streams, last=True))
            if draft is not None:
                score.count(draft == chosen, f"{draft} for {chosen}")
            if chosen == end:
                break
            following = mx.array([[*tokens[1:], chosen]], mx.int32)
            logits, _ = model.draft(streams, following, state, start)
            draft = _best(logits)
            mx.eval(*state.arrays())
            tokens = [chosen]
    return score


def _best(logits: mx.array) -> int:
    return int(np.argmax(np.array(logits[0, -1])))
