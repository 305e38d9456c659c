"""What the demo model knows about dsv4-mlx, and the many ways to ask for it.

A model this small knows no synonyms: it recognises what was written here, and new combinations of it.
Each line of facts.txt: topic; the other names it goes by; what is to be said.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

TABLE = Path(__file__).with_name("facts.txt")

TEMPLATES = (
    "What is {}?", "Tell me about {}.", "Explain {}.", "Please explain {}.", "Describe {}.", "{}?",
    "What do you know about {}?", "Do you know {}?", "I want to know {}.", "Can you explain {}?",
    "Say something about {}.", "A question about {}.", "Can you tell me about {}?", "Please tell me {}.",
)  # fmt: skip
# Known words in an order never trained.
UNSEEN = (
    "Can you describe {}?", "Tell me what you know about {}.", "I want to know about {}.",
    "Please describe {}.",
)  # fmt: skip


@dataclass(frozen=True)
class Fact:
    topic: str
    names: tuple[str, ...]  # the topic first
    answer: str

    def questions(self, *, trained: bool) -> list[str]:
        """Every trained question, or those kept back: one in eight combinations and all of UNSEEN."""
        asked = [_capital(t.format(name)) for name in self.names for t in TEMPLATES]
        kept = [q for q in asked if (zlib.crc32(q.encode()) % 8 == 0) != trained]
        return kept if trained else kept + [_capital(t.format(n)) for n in self.names for t in UNSEEN]

    def thought(self) -> str:
        return f"They ask about {self.topic}. I know this."

    def long_thought(self) -> str:
        return (
            f"They ask about {self.topic}. Let me think step by step. "
            f"First, I recall what I know: {self.answer} "
            f"Second, I check it: this is about {self.topic}, and it is what they asked for. So I can answer."
        )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def facts() -> list[Fact]:
    found = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        topic, names, answer = (part.strip() for part in line.split("|"))
        found.append(Fact(topic, (topic, *(name.strip() for name in names.split(";"))), answer))
    return found
