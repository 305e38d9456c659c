"""What drawing the chat costs while an answer streams at 100 tokens/s, and how soon a key shows.

    python bench/terminal_redraw.py [--out bench/results/terminal_redraw.json]

A child process runs the chat in a pseudo-terminal with a scripted engine; this one types and reads. Cost is
the processor time of the thread that draws, all its work included, per token; a token takes 10 ms. Echo is
the time from writing a key to the terminal until the program writes it back, read as raw bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import pexpect  # noqa: E402
from terminal.scripted import Reply, Scripted, words  # noqa: E402

TOKEN = 0.010  # seconds
TOKENS = 2000
KEYS = 120
ALLOWED_COST, ALLOWED_ECHO = 0.02, 0.050

_PARAGRAPH = (
    "A sliding window keeps only the **last rows** of a sequence, so its memory does not grow with the text; "
    "what is further back is reached through `compressed rows`, which stand for several tokens each. "
)
_SAMPLE = f"""\
## How it works

{_PARAGRAPH * 3}

- the window holds 128 rows, and a *ring* of them is enough
- a compressed row stands for 4 or for 128 tokens
- an index chooses which of them are read

```python
def attend(query, rows, index):
    \"\"\"Rows that the index chose, and the window.\"\"\"
    chosen = [rows[i] for i in index]
    for i, row in enumerate(chosen):
        print(f"row {{i}} of {{len(chosen)}}: {{row}}")
    return softmax(query @ chosen) @ chosen
```

| kind | rows | tokens a row |
|------|------|--------------|
| CSA  | 512  | 4            |
| HCA  | all  | 128          |

"""


def child(folder: Path, report: Path) -> int:
    """The chat, with counters around each answer."""
    from dsv4_mlx.terminal.answering import AnswerInProgress
    from dsv4_mlx.terminal.chat import ChatOptions
    from dsv4_mlx.terminal.screen import Screen
    from dsv4_mlx.terminal.terminal import talk

    figures: list[dict[str, float]] = []
    begun: list[tuple[float, float, int]] = []
    begin, end = Screen.begin, Screen.end

    def counted_begin(screen: Screen, answering: AnswerInProgress) -> None:
        begun.append((time.thread_time(), screen.drawing, screen.drawings))
        begin(screen, answering)

    def counted_end(screen: Screen, answering: AnswerInProgress) -> None:
        end(screen, answering)
        cpu, drawing, drawings = begun.pop()
        tokens = answering.message.tokens
        figures.append(
            {
                "tokens": tokens,
                "tokens_per_second": answering.decode_rate or 0.0,
                "thread_ms_per_token": (time.thread_time() - cpu) * 1e3 / tokens,
                "drawing_ms_per_token": (screen.drawing - drawing) * 1e3 / tokens,
                "drawings_per_second": (screen.drawings - drawings) / (tokens * TOKEN),
            }
        )
        report.write_text(json.dumps(figures))

    setattr(Screen, "begin", counted_begin)  # noqa: B010
    setattr(Screen, "end", counted_end)  # noqa: B010
    text = _SAMPLE * 20
    reply = Reply(words("answer", text)[:TOKENS], delay=TOKEN)
    speaker = Scripted(lambda question, asked: reply, context=100_000)
    return talk(speaker, folder, ChatOptions("bench", seed=1), dict(os.environ))


def measure(columns: int, rows: int) -> dict[str, Any]:
    """Two answers in a terminal of this size: one watched, one typed through."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, report = Path(temporary), Path(temporary) / "figures.json"
        environment = {**os.environ, "TERM": "xterm-256color", "LANG": "C.UTF-8"}
        command = [str(Path(__file__)), "--child", temporary, "--report", str(report)]
        person = pexpect.spawn(
            sys.executable, command, dimensions=(rows, columns), env=environment, timeout=120, echo=False
        )
        person.delaybeforesend = None
        person.expect("think on")
        person.send("first\r")
        _read_until(person, lambda: report.is_file(), 120)
        time.sleep(0.3)
        _drain(person)
        person.send("second\r")
        person.expect("works")
        echoes = [_echo(person, i) for i in range(KEYS)]
        _read_until(person, lambda: len(json.loads(report.read_text() or "[]")) > 1, 120)
        watched = json.loads(report.read_text())[0]
        person.close(force=True)
    assert (folder / "chats").exists() is False  # the folder is gone with its files
    return {
        "terminal": f"{columns}x{rows}",
        **{name: round(value, 3) for name, value in watched.items()},
        "share_of_a_token": round(watched["thread_ms_per_token"] / (TOKEN * 1e3), 4),
        "echo_ms_median": round(statistics.median(echoes) * 1e3, 1),
        "echo_ms_p95": round(sorted(echoes)[int(len(echoes) * 0.95)] * 1e3, 1),
        "echo_ms_largest": round(max(echoes) * 1e3, 1),
    }


def _echo(person: pexpect.spawn[bytes], number: int) -> float:
    """Type one key that the answer never has; seconds until it comes back."""
    key = "#%&@~^"[number % 6]
    time.sleep(0.05 + 0.007 * (number % 9))  # at every phase of the drawing
    _drain(person)
    start = time.monotonic()
    person.send(key)
    seen = b""
    while key.encode() not in seen:
        seen += person.read_nonblocking(65_536, timeout=5)
    return time.monotonic() - start


def _drain(person: pexpect.spawn[bytes]) -> None:
    try:
        while True:
            person.read_nonblocking(65_536, timeout=0)
    except pexpect.TIMEOUT:
        return


def _read_until(person: pexpect.spawn[bytes], test: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not test():
        _drain(person)
        time.sleep(0.05)
        assert time.monotonic() < end, "the answer has not ended"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        return child(given.child, given.report)
    sizes = [measure(80, 24), measure(200, 50)]
    found = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores (not a Mac)",
        "load_average": round(os.getloadavg()[0], 1),
        "nice": os.nice(0),  # below 0: the machine was busy with other work, and this was put first
        "python": platform.python_version(),
        "token_ms": TOKEN * 1e3,
        "allowed": {"share_of_a_token": ALLOWED_COST, "echo_ms": ALLOWED_ECHO * 1e3},
        "sizes": sizes,
    }
    print(json.dumps(found, indent=1))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n")
    good = all(
        size["share_of_a_token"] < ALLOWED_COST and size["echo_ms_p95"] < ALLOWED_ECHO * 1e3 for size in sizes
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
