"""What the demo model can and can't do: `python -m bench.demo_model.eval OFFICIAL_FOLDER [--run RUN]`.

Everything is greedy and free-running through the product's prompt code, engine and parser, on a conversion
of the folder made here. `--run` adds the comparison with the weights before rounding.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.demo_model import compare
from bench.demo_model.checks import (
    Score,
    ask_facts,
    ask_json,
    ask_memory,
    ask_needle,
    ask_tools,
)
from bench.demo_model.export import trained
from bench.demo_model.models import (
    WINDOW_ONLY,
    Bfloat16Tensors,
    converted,
    floats,
    read_official,
)
from bench.demo_model.weights import official
from dsv4_mlx.convert.run import convert
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.tokenizer.template import THINK


class Table:
    """Rows printed as they come and kept for the JSON."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def add(self, task: str, score: Score, wanted: str = "reported") -> None:
        share = f"{score.right}/{score.asked} = {score.share:.1%}"
        print(f"{task:58s} {share:18s} {wanted}", flush=True)
        self.rows.append({"task": task, "right": score.right, "asked": score.asked, "wanted": wanted})
        if score.wrong:
            print(f"{'':6s}for instance {score.wrong[0]}", flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)
        self.rows.append({"note": text})


def talk_tasks(engine: Engine, table: Table, size: float) -> None:
    """The tasks that are answers to messages."""

    def count(full: int) -> int:
        return max(2, round(full * size))

    for think in THINK:
        trained_, unseen, behaved = ask_facts(engine, think, random.Random(1), count(87))
        table.add(f"facts, {think}: questions trained on", trained_, ">= 95%")
        table.add(f"facts, {think}: paraphrases not trained on", unseen)
        table.add(f"facts, {think}: mode kept and stopped by itself", behaved, "100%")
    for think in THINK[:2]:
        calls, answers = ask_tools(engine, think, random.Random(2), count(40), 1)
        table.add(f"one tool call, unseen argument, {think}", calls, ">= 85%")
        table.add(f"answer from the tool's result, {think}", answers, ">= 85%")
    for length, full, wanted in ((512, 40, ">= 90%"), (1024, 30, ">= 90%"), (4096, 10, "reported")):
        table.add(f"needle at {length}", ask_needle(engine, random.Random(3), count(full), length), wanted)
    both, after = ask_tools(engine, "off", random.Random(4), count(20), 2)
    table.add("two tools in one turn: both calls", both)
    table.add("two tools in one turn: answer from both results", after)
    table.add("JSON when told", ask_json(engine, random.Random(5), count(30)))
    for between in (False, True):
        name = "two-turn memory" + (", a question between" if between else "")
        table.add(name, ask_memory(engine, random.Random(6), count(30), between))


def comparisons(folder: Path, native: Path, run: Path | None, table: Table, size: float) -> None:
    """What storage and number formats change."""
    engine = converted(native)
    cut = converted(native, WINDOW_ONLY)
    table.add("needle at 512, compressed rows cut off", ask_needle(cut, random.Random(3), 20, 512), "chance")
    values = read_official(folder)
    prompts = compare.prompts(engine, random.Random(7), max(4, round(24 * size)))
    plain = floats(values, engine)
    table.note("native against the unconverted weights: " + compare.differences(engine, plain, prompts))
    small = native.with_name("4bit")
    convert(folder, small, "4bit")
    table.note(
        "4bit against native:                    " + compare.differences(converted(small), engine, prompts)
    )
    facts = max(8, round(87 * size))
    for think in THINK:
        kept = ask_facts(converted(small), think, random.Random(1), facts)[0]
        table.add(f"facts, {think}, recipe 4bit", kept)
    half = floats(values, engine, Bfloat16Tensors)
    table.note("bfloat16 activations against float32:   " + compare.differences(half, plain, prompts))
    if run is not None:
        before = floats(
            {n: compare.array(v) for n, v in official(engine.config, trained(run)).items()}, engine
        )
        table.note("rounded to FP8/FP4 against unrounded:   " + compare.differences(plain, before, prompts))
        count = max(8, round(40 * size))
        for name, model in (("before rounding", before), ("after rounding", engine)):
            table.add(
                f"facts, off, {name}", ask_facts(model, "off", random.Random(1), facts)[0], "<= 2 points"
            )
            table.add(
                f"needle at 512, {name}", ask_needle(model, random.Random(3), count, 512), "<= 2 points"
            )
    table.add("MTP: first draft accepted, real loop", compare.accepted(engine, prompts), ">= 80%")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the official checkpoint")
    parser.add_argument("--run", type=Path, help="the training run it was exported from")
    parser.add_argument("--size", type=float, default=1.0, help="share of the questions to ask")
    parser.add_argument("--part", choices=("talk", "compare"), help="only what it says, or what changes it")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    table, started = Table(), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        native = Path(temporary) / "native"
        convert(options.folder, native)
        if options.part != "compare":
            timed(lambda: talk_tasks(converted(native), table, options.size))
        if options.part != "talk":
            timed(lambda: comparisons(options.folder, native, options.run, table, options.size))
    print(f"{time.monotonic() - started:.0f} s")
    if options.json:
        options.json.write_text(json.dumps(table.rows, indent=1) + "\n", encoding="utf-8")


def timed(task: Callable[[], None]) -> None:
    started = time.monotonic()
    task()
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
