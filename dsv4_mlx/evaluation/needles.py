"""Does the model find what was said once, far back in a long text?

Meaningless sentences, eight of them `The code of NAME is NUMBER.` at even depths; asked for three, one after
the other, with the likeliest tokens. The wording is one that the demo model was trained on and that any model
of language understands. A number of three digits is guessed once in 900 times.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.generate import answer
from dsv4_mlx.evaluation import words
from dsv4_mlx.evaluation.report import AcceptanceStep, Bar
from dsv4_mlx.tokenizer.template import Prompts

LENGTHS = (4096, 32_768, 65_536)  # tokens of the prompt, a few more
CODES = 8
ASKED = (0, 3, 7)  # of them: near the beginning, the middle, and the end but beyond the window
ENOUGH = 2  # of those asked for: one may be lost by a sound model, and none is found by chance
OVER = 64  # tokens by which a prompt may be longer than it should be: sentences are whole
ANSWER = 32  # tokens
_GREEDY = SamplingOptions(temperature=0.0)


@dataclass(frozen=True)
class Haystack:
    """A text and what is hidden in it: (name, code) at depths (i + 1/2) / CODES."""

    text: str
    codes: tuple[tuple[str, str], ...]

    def question(self, which: int) -> str:
        return f"{self.text} What is the code of {self.codes[which][0]}?"


def haystack(prompts: Prompts, length: int) -> Haystack:
    """The shortest whose prompts have `length` tokens or a few more; the same at every call."""
    tokens = len(prompts.tokenizer.encode(" ".join(_sentences(256)))) / 256
    count = max(1, int(length / tokens) - CODES)
    while True:
        made = _made(length, count)
        missing = length - len(_prompt(prompts, made, 0))
        if missing <= 0:
            return made
        count += max(1, int(missing / tokens))


def needles(engine: Engine, length: int, bar: Bar) -> AcceptanceStep:
    """Ask for ASKED of the codes in a text of `length` tokens, or say why not."""
    short = too_short(engine, length + OVER + ANSWER)
    if short:
        return AcceptanceStep(name_of(length), None, (short,))
    hidden = haystack(engine.prompts, length)
    session = engine.session()
    told, missed, asked = [], [], []
    for number, which in enumerate(ASKED):
        begin = time.perf_counter()
        ids = _prompt(engine.prompts, hidden, which)
        with bar(f"{name_of(length)}, {number + 1} of {len(ASKED)}", "tokens") as show:
            session.sync(ids, show)
        said = "".join(
            piece.text
            for piece in answer(
                engine, session, hidden.question(which), "off", _GREEDY, max_tokens=ANSWER
            )
        )  # fmt: skip
        seconds = time.perf_counter() - begin
        found = [code for _, code in hidden.codes if code in said] == [hidden.codes[which][1]]
        depth = (which + 0.5) / CODES
        line = f"{len(ids):,} tokens, {depth:.0%} deep: {'found' if found else 'NOT found'}, {seconds:.1f} s"
        told.append(line)
        missed += [] if found else [line]
        asked.append({"depth": depth, "tokens": len(ids), "found": found, "seconds": round(seconds, 2)})
    ok = len(ASKED) - len(missed) >= ENOUGH
    return AcceptanceStep(name_of(length), ok, () if ok else tuple(missed), {"needles": asked}, tuple(told))


def too_short(engine: Engine, tokens: int) -> str:
    """Why `tokens` don't fit the context; "" if they do."""
    if tokens <= engine.context:
        return ""
    if engine.context == engine.config.max_context:
        return f"needs {tokens:,} tokens of context, config.json allows {engine.context:,}"
    return f"needs {tokens:,} tokens of context, this machine's memory allows {engine.context:,}"


def name_of(length: int) -> str:
    """The name of a step."""
    return f"needles in {length // 1024}K tokens" if length >= 1024 else f"needles in {length} tokens"


def _prompt(prompts: Prompts, hidden: Haystack, which: int) -> list[int]:
    return prompts.encode(prompts.ask(hidden.question(which), "off"))


def _sentences(count: int) -> list[str]:
    draw = random.Random(0)
    return [words.sentence(draw) for _ in range(count)]


def _made(seed: int, count: int) -> Haystack:
    """`count` sentences and the codes among them."""
    draw = random.Random(seed)
    names = words.names(draw, CODES, seen=False)
    numbers = draw.sample(range(100, 1000), CODES)
    codes = tuple((name, str(number)) for name, number in zip(names, numbers, strict=True))
    text = _sentences(count)
    for i in reversed(range(CODES)):
        text.insert(round((i + 0.5) / CODES * count), f"The code of {codes[i][0]} is {codes[i][1]}.")
    return Haystack(" ".join(text), codes)
