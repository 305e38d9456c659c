"""The eval's tasks: questions asked through the product, answers compared with what they must be."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from deepseek_recipe import AssistantMessage, Conversation, Message, UserMessage

from bench.demo_model.dialogue import Dialogue
from bench.demo_model.talk import Turn, say
from bench.demo_model.tasks import FACTS, TOOLS, Use, in_json, memory, needle, tool_round
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.evaluation import words
from dsv4_mlx.tokenizer.template import Think

BEYOND = 500  # characters: more than a window of 64 tokens, a word being about one


@dataclass
class Score:
    right: int = 0
    asked: int = 0
    wrong: list[str] = field(default_factory=list)  # a few examples

    @property
    def share(self) -> float:
        return self.right / max(1, self.asked)

    def count(self, right: bool, what: str) -> None:
        self.asked += 1
        self.right += right
        if not right and len(self.wrong) < 3:
            self.wrong.append(what)


def conversation(engine: Engine, dialogue: Dialogue, messages: list[Message]) -> Conversation:
    return Conversation(
        messages,
        thinking_mode=dialogue.think != "off",
        reasoning_effort=engine.prompts.effort[dialogue.think],
        tools=dialogue.tools,
        response_format="json_object" if dialogue.json else "text",
    )


def ask_facts(engine: Engine, think: Think, r: random.Random, count: int) -> tuple[Score, Score, Score]:
    """(a trained question per fact, one not trained on, modes: thinks as told and stops by itself)."""
    scores = Score(), Score(), Score()
    least = {"off": 0, "on": 1, "max": 120}[think]  # characters of thinking; `on` never reaches 120
    for fact in FACTS[:count]:
        for score, trained in zip(scores[:2], (True, False), strict=True):
            asked = r.choice(fact.questions(trained=trained))
            turn = say(engine, engine.prompts.ask(asked, think))
            score.count(turn.answer == fact.answer, f"{asked!r} -> {turn.answer!r}")
            length = len(turn.thinking)
            kept = length == 0 if think == "off" else length >= least and (think == "max" or length < 120)
            scores[2].count(kept and turn.stopped, f"{asked!r} -> {turn.thinking!r}, {turn.answer!r}")
    return scores


def ask_tools(engine: Engine, think: Think, r: random.Random, count: int, calls: int) -> tuple[Score, Score]:
    """(the right calls, the right answer from the results of the right calls); names never trained."""
    called, answered = Score(), Score()
    for _ in range(count):
        offered = r.sample(TOOLS, r.randint(max(1, calls - 1), 3))
        arguments = words.names(r, calls, seen=False)
        uses = [Use(r.choice(offered), argument, words.number(r)) for argument in arguments]
        messages = tool_round(r, uses, 0, think)
        dialogue = Dialogue(messages, think, [tool.definition() for tool in offered])
        turn = say(engine, conversation(engine, dialogue, messages[:1]))
        wanted = "".join(u.tool.name + json.dumps({u.tool.parameter: u.argument}) for u in uses)
        right = _bare(turn.tools) == _bare(wanted) and not turn.answer.strip() and turn.stopped
        called.count(right, f"{messages[0].content!r} -> {turn.tools!r} {turn.answer!r}")
        turn = say(engine, conversation(engine, dialogue, messages[:-1]))
        answered.count(_ends_well(turn, messages[-1].content), f"{messages[-1].content!r}: {turn.answer!r}")
    return called, answered


def _bare(text: str) -> str:
    return "".join(text.split())


def _ends_well(turn: Turn, wanted: str | None) -> bool:
    return turn.answer == wanted and turn.stopped


def ask_needle(engine: Engine, r: random.Random, count: int, length: int) -> Score:
    """One question about a key that stands once among others in a text; names never trained.

    It stands beyond the window: near the end the window alone would find it.
    """
    score = Score()
    while score.asked < count:
        dialogue = needle(r, length, 8, 1, seen=False)
        text, wanted = dialogue.messages[0].content or "", dialogue.messages[-1].content or ""
        if len(text) - text.index(wanted) < BEYOND:
            continue
        turn = say(engine, conversation(engine, dialogue, dialogue.messages[:1]))
        score.count(_ends_well(turn, wanted), f"{wanted!r}: {turn.answer!r}")
    return score


def ask_json(engine: Engine, r: random.Random, count: int) -> Score:
    score = Score()
    for _ in range(count):
        dialogue = in_json(r, seen=False)
        turn = say(engine, conversation(engine, dialogue, dialogue.messages[:-1]))
        wanted = dialogue.messages[-1].content or ""
        try:
            right = json.loads(turn.answer) == json.loads(wanted)
        except ValueError:
            right = False
        score.count(right and turn.stopped, f"{wanted!r}: {turn.answer!r}")
    return score


def ask_memory(engine: Engine, r: random.Random, count: int, between: bool) -> Score:
    """The model's own first answers stay in the conversation."""
    score = Score()
    for _ in range(count):
        dialogue = memory(r, "off", between, seen=False)
        said: list[Message] = []
        answer = ""
        for message in dialogue.messages:
            if isinstance(message, UserMessage):
                said.append(message)
                answer = say(engine, conversation(engine, dialogue, said)).answer
                said.append(AssistantMessage(answer))
        wanted = dialogue.messages[-1].content
        score.count(answer == wanted, f"{wanted!r}: {answer!r}")
    return score
