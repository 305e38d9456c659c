"""What the model is trained to do, as generated dialogues. `seen` False: names that are never trained."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_recipe import (
    AssistantMessage,
    Message,
    SystemMessage,
    ToolCall,
    ToolDefinition,
    ToolMessage,
    UserMessage,
)

from bench.demo_model.dialogue import Dialogue
from bench.demo_model.facts import Fact, facts
from dsv4_mlx.evaluation import words
from dsv4_mlx.tokenizer.template import Think

FACTS = facts()


def question(fact: Fact, asked: str, think: Think) -> Dialogue:
    reasoning = {"off": None, "on": fact.thought(), "max": fact.long_thought()}[think]
    return Dialogue([UserMessage(asked), AssistantMessage(fact.answer, reasoning)], think)


def _asked(r: random.Random) -> tuple[Fact, str]:
    fact = r.choice(FACTS)
    return fact, r.choice(fact.questions(trained=True))


def qa(r: random.Random, think: Think) -> Dialogue:
    return question(*_asked(r), think)


@dataclass(frozen=True)
class Tool:
    """A function with one string parameter, how it is asked for, and what is made of its result."""

    name: str
    about: str
    parameter: str
    asks: tuple[str, ...]
    result: str
    answer: str

    def definition(self) -> ToolDefinition:
        kind = {"type": "object", "properties": {self.parameter: {"type": "string"}}}
        return ToolDefinition(self.name, self.about, {**kind, "required": [self.parameter]})


TOOLS = (
    Tool("get_weather", "The weather in a city.", "city",
         ("What is the weather in {}?", "How warm is it in {}?", "Tell me the weather in {}."),
         "{} degrees", "It is {1} degrees in {0}."),
    Tool("get_population", "How many people live in a city.", "city",
         ("How many people live in {}?", "What is the population of {}?", "Tell me the population of {}."),
         "{} people", "{0} has {1} people."),
    Tool("find_phone", "The phone number of a person.", "person",
         ("What is the phone number of {}?", "How can I call {}?", "Find the phone number of {}."),
         "phone {}", "The phone number of {0} is {1}."),
    Tool("get_price", "The price of a thing.", "thing",
         ("What does {} cost?", "What is the price of {}?", "Tell me the price of {}."),
         "{} coins", "{0} costs {1} coins."),
    Tool("find_room", "The room of a person.", "person",
         ("In which room is {}?", "Where is {}?", "Find the room of {}."),
         "room {}", "{0} is in room {1}."),
)  # fmt: skip


@dataclass(frozen=True)
class Use:
    """One use of a tool: the name asked for, the number that comes back."""

    tool: Tool
    argument: str
    value: str

    def call(self, number: int) -> ToolCall:
        return ToolCall(f"call_{number}", self.tool.name, json.dumps({self.tool.parameter: self.argument}))

    def result(self, number: int) -> ToolMessage:
        return ToolMessage(self.tool.result.format(self.value), f"call_{number}")

    def answer(self) -> str:
        return self.tool.answer.format(self.argument, self.value)


def _use(r: random.Random, tool: Tool, argument: str) -> Use:
    return Use(tool, argument, words.number(r))


def tool_round(r: random.Random, uses: list[Use], number: int, think: Think) -> list[Message]:
    """A question, the calls, their results and the answer."""
    asks = [r.choice(use.tool.asks).format(use.argument) for use in uses]
    before = after = None
    if think != "off":
        before = "I call " + " and ".join(f"{u.tool.name} for {u.argument}" for u in uses) + "."
        after = "The result is " + " and ".join(use.value for use in uses) + "."
    calls = [use.call(number + i) for i, use in enumerate(uses)]
    return [
        UserMessage(" ".join(asks)),
        AssistantMessage("", before, calls),
        *(use.result(number + i) for i, use in enumerate(uses)),
        AssistantMessage(" ".join(use.answer() for use in uses), after),
    ]


def tool_dialogue(r: random.Random, think: Think, rounds: int, calls: int, seen: bool = True) -> Dialogue:
    offered = r.sample(TOOLS, r.randint(max(1, calls - 1), 3))
    arguments = words.names(r, rounds * calls, seen=seen)
    messages: list[Message] = []
    copied: list[str] = list(arguments)
    for i in range(rounds):
        uses = [_use(r, r.choice(offered), arguments.pop()) for _ in range(calls)]
        copied += [use.value for use in uses]
        messages += tool_round(r, uses, i * calls, think)
    tools, chosen = [tool.definition() for tool in offered], tuple(tool.name for tool in offered)
    return Dialogue(messages, think, tools, copied=tuple(copied), stressed=chosen)


def needle(r: random.Random, length: int, pairs: int, questions: int, seen: bool = True) -> Dialogue:
    """A text of about `length` tokens with codes in it, and questions for some of them."""
    hidden = words.names(r, pairs, seen=seen)
    values = [words.number(r) for _ in hidden]
    facts = [f"The code of {name} is {value}." for name, value in zip(hidden, values, strict=True)]
    count = max(0, (length - 14 * pairs) // 10)
    text = [words.sentence(r) for _ in range(count)]
    for fact in facts:
        text.insert(r.randint(0, len(text)), fact)
    messages: list[Message] = []
    asked = r.sample(range(pairs), min(questions, pairs))
    for i, which in enumerate(asked):
        ask = f"What is the code of {hidden[which]}?"
        messages.append(UserMessage(" ".join([*text, ask]) if i == 0 else ask))
        messages.append(AssistantMessage(facts[which]))
    return Dialogue(messages, copied=(*hidden, *values))


def repeat(r: random.Random) -> Dialogue:
    """Copying, plain: what calls and answers are made of."""
    messages: list[Message] = []
    items = [words.name(r) if r.random() < 0.7 else words.number(r) for _ in range(6)]
    for i in (0, 3):
        said = " ".join(items[i : i + 3])
        messages += [UserMessage(f"Repeat {said}."), AssistantMessage(f"{said}.")]
    return Dialogue(messages, copied=tuple(items))


def in_json(r: random.Random, seen: bool = True) -> Dialogue:
    who, value = words.name(r, seen=seen), words.number(r)
    told = f"The code of {who} is {value}. Give me the name and the code."
    said = json.dumps({"name": who, "code": int(value)})
    return Dialogue(
        [SystemMessage("Answer in JSON."), UserMessage(told), AssistantMessage(said)],
        json=True, copied=(who, value),
    )  # fmt: skip


MEMORIES = (
    ("My name is {}.", "Hello, {}.", "What is my name?", "Your name is {}."),
    ("I live in {}.", "I see, {}.", "Where do I live?", "You live in {}."),
    ("My friend is {}.", "I see, {}.", "Who is my friend?", "Your friend is {}."),
)


def memory(r: random.Random, think: Think, between: bool, seen: bool = True) -> Dialogue:
    """Something is told; perhaps something else is asked; then it is asked back."""
    who = words.name(r, seen=seen)
    told, noted, ask, said = (text.format(who) for text in r.choice(MEMORIES))
    noted_thought = None if think == "off" else "They tell me this."
    said_thought = None if think == "off" else "They told me this."
    messages: list[Message] = [UserMessage(told), AssistantMessage(noted, noted_thought)]
    if think != "off" and r.random() < 0.3:  # the first turn's thinking shows only while it is the last
        return Dialogue(messages, think, copied=(who,))
    if between:
        messages += question(*_asked(r), think).messages
    messages += [UserMessage(ask), AssistantMessage(said, said_thought)]
    return Dialogue(messages, think, copied=(who,))


def _kind(r: random.Random) -> Think:
    return "on" if r.random() < 0.5 else "off"


KINDS: dict[str, Callable[[random.Random], Dialogue]] = {
    "qa_off": lambda r: qa(r, "off"),
    "qa_on": lambda r: qa(r, "on"),
    "qa_max": lambda r: qa(r, "max"),
    "tool": lambda r: tool_dialogue(r, _kind(r), 3, 1),
    "tool2": lambda r: tool_dialogue(r, _kind(r), 2, 2),
    "repeat": repeat,
    "json": in_json,
    "memory": lambda r: memory(r, _kind(r), r.random() < 0.3),
}
# Needle lengths as the training advances: tokens, pairs, questions.
STAGES = ((96, 2, 2), (160, 4, 4), (300, 12, 12), (512, 12, 12), (1024, 10, 8))
