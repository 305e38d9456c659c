"""Memory over 20,000 generated tokens: bench/results/long_run.json and .svg.

    python bench/long_run.py [TOKENS]

The model is a synthetic one, as small as can be: what is shown is that memory follows the shapes, not how
large it is. tests/engine/test_long_run.py holds the same run to its limits.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]

from memory_run import PROMPT, Sample, tiny_engine, watch  # noqa: E402

from dsv4_mlx.cli.chart import Line, Panel, chart  # noqa: E402
from dsv4_mlx.machine.limits import description  # noqa: E402
from dsv4_mlx.model.state import GROWTH  # noqa: E402


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000

    def say(sample: Sample) -> None:
        if sample.tokens % 1000 == 0:
            print(f"{sample.tokens} tokens, {sample.active / 1e6:.2f} MB active", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        total = tokens + len(PROMPT)
        engine = tiny_engine(Path(folder), total)
        samples = watch(engine, total, GROWTH, every=500, before=0, said=say)
    kept = [s for i, s in enumerate(samples) if s.arrays or i in (0, len(samples) - 1)]
    kept += [s for a, b in zip(samples, samples[1:], strict=False) if a.active != b.active for s in (a, b)]
    kept = sorted(set(kept), key=lambda sample: sample.tokens)
    worst = max(abs(s.active - s.predicted) / s.predicted for s in samples)
    found = {
        "machine": description(),
        "generated": tokens,
        "growth": GROWTH,
        "worst_deviation": worst,
        "active_values": sorted({s.active for s in samples}),
        "changes_at": [b.tokens for a, b in zip(samples, samples[1:], strict=False) if a.active != b.active],
        "largest_cache": max(s.cache for s in samples),
        "array_counts": sorted({s.arrays for s in samples if s.arrays is not None}),
        "samples": [vars(sample) for sample in kept],
    }
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    (results / "long_run.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (results / "long_run.svg").write_text(plot(kept, description()), encoding="utf-8")
    print({key: value for key, value in found.items() if key != "samples"})


def plot(samples: list[Sample], machine: str) -> str:
    memory = [
        Line("active", [(s.tokens, s.active / 1e6) for s in samples]),
        Line("predicted", [(s.tokens, s.predicted / 1e6) for s in samples]),
        Line("cache", [(s.tokens, s.cache / 1e6) for s in samples]),
    ]
    counted = [(s.tokens, float(s.arrays)) for s in samples if s.arrays is not None]
    panels = [
        Panel("Memory of one long answer", "tokens", "MB", memory),
        Panel("Arrays that Python can reach", "tokens", "arrays", [Line("arrays", counted)]),
    ]
    return chart(panels, f"a synthetic model on {machine}")


if __name__ == "__main__":
    main()
