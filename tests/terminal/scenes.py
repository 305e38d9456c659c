"""Scripted engines by name, for the pseudo-terminal tests. The question chooses the answer."""

from __future__ import annotations

from collections.abc import Callable

from dsv4_mlx.errors import MachineError
from dsv4_mlx.terminal.chat_engine import ChatRequest
from terminal.scripted import Reply, Scripted, Step, words

MARKDOWN = """\
# Sliding windows

A **window** keeps the last rows. It has `size` rows:

- first item
- second item

```python
def slide(rows, size):
    return rows[-size:]
```

| name | value |
|------|-------|
| size | 128 |

The end.
"""

# Each piece is whole characters, as a tokenizer's decoder gives them, but clusters are split over pieces.
WIDE: list[Step] = [
    ("answer", piece)
    for piece in (
        "日本", "語の", "テキスト ", "e", "\u0301", " 👩", "\u200d", "💻", " 👍", "\U0001f3fd", " 한",
        "국어 ", "ไทย ", "नम", "स्ते ", "🇩", "🇪", " fin",
    )
]  # fmt: skip


def answer(question: str, asked: ChatRequest) -> Reply:
    text = question.rsplit("\n", 1)[-1]
    if text.startswith("slow think"):
        return Reply(words("thinking", "hmm " * 400), delay=0.02)
    if text.startswith("slow prefill"):
        return Reply(words("answer", "done"), prefill=100, prefill_delay=0.05)
    if text.startswith("slow"):
        return Reply(words("answer", "".join(f"word{i} " for i in range(600))), delay=0.02)
    if text.startswith(("think", "ponder")):
        delay = 0.02 if text.startswith("ponder") else 0.003
        thoughts = "".join(f"thought number {i} is here.\n" for i in range(30))
        return Reply([*words("thinking", thoughts), *words("answer", "The **answer** is 42.")], delay=delay)
    if text.startswith("wide"):
        return Reply([*WIDE * 3, ("answer", "\n\nall")], delay=0.01)
    if text.startswith("long line"):
        line = " ".join(f"w{i}" for i in range(1200))
        return Reply(words("answer", line + "\n\nafter it"), delay=0.0005)
    if text.startswith("one word"):
        return Reply([("answer", "x" * 50) for _ in range(60)] + words("answer", " end"), delay=0.001)
    if text.startswith("code"):
        body = "\n".join(f"value_{i} = {i}" for i in range(60))
        return Reply(words("answer", f"Code:\n\n```python\n{body}\n```\n\nDone."), delay=0.001)
    if text.startswith("tool"):
        return Reply([("tool", "get_weather"), ("tool", '{"city": "Oslo"}')])
    if text.startswith("escape"):
        return Reply(words("answer", "safe \x1b]0;owned\a \x1b[2J text \x9b31m here"))
    if text.startswith("fail"):
        return Reply(words("answer", "half an answer"), error=MachineError("the device failed", next="rest"))
    if text.startswith("bug"):
        return Reply([], error=ValueError("a bug"))
    if text.startswith("cut"):
        return Reply(words("answer", "not the whole"), ending="length")
    if text.startswith("markdown"):
        return Reply(words("answer", MARKDOWN), delay=0.02)
    said = f"You said {len(question)} characters; turn {len(asked.messages)}; seed {asked.seed}."
    return Reply(words("answer", said))


SCENES: dict[str, Callable[[], Scripted]] = {
    "quick": lambda: Scripted(answer),
    "small": lambda: Scripted(answer, context=500),
    "loading": lambda: Scripted(answer, load_steps=100, load_delay=0.025),
    "broken": lambda: Scripted(answer, load_error=MachineError("the disk failed", next="check it")),
}
