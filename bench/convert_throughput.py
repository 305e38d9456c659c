"""Conversion of one true-size layer against `cp` and `sync` of the same bytes.

    python bench/convert_throughput.py --folder DIR [--pairs 5] [--recipe native] [--out FILE]

The page cache is dropped before each run (`/proc/sys/vm/drop_caches` as root, else posix_fadvise on every
file, which is weaker and is recorded). Copy and conversion alternate, and which goes first changes with every
pair. A conversion is a process of its own: its time includes starting Python. Its time ends when everything
is on disk; so does that of `cp`, which is followed by `sync`. About 11 GB of disk are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

CONVERT = """
import json, sys
from pathlib import Path
from dsv4_mlx.convert.run import convert
summary = convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]).to_json()
print(json.dumps({key: summary[key] for key in ("bytes", "seconds", "hash_seconds", "write_seconds")}))
"""


def make_source(folder: Path) -> None:
    """One layer of V4-Flash at its true widths with 256 experts; a small vocabulary and no MTP block."""
    if (folder / "model.safetensors.index.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    config = cut(release_config("flash", true_size=True), layers=1)
    config |= {"num_nextn_predict_layers": 0, "compress_ratios": [0], "vocab_size": 4096}
    write_checkpoint(folder, config)


def drop_cache(folder: Path) -> str:
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
        return "drop_caches"
    except OSError:
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return "fadvise"


def time_copy(source: Path, target: Path) -> dict[str, Any]:
    started = time.perf_counter()
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)
    subprocess.run(["sync"], check=True)
    return {"seconds": time.perf_counter() - started}


def time_convert(source: Path, target: Path, recipe: str) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    given = [str(source), str(target), recipe]
    done = subprocess.run([sys.executable, "-c", CONVERT, *given], check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    inside = json.loads(done.stdout)
    return inside | {"seconds": seconds, "convert_seconds": inside["seconds"], "cpu_seconds": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description="Conversion throughput against cp and sync")
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder on the disk to measure")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--recipe", default="native")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    source, target = options.folder / "layer", options.folder / "target"
    make_source(source)
    size = sum(path.stat().st_size for path in source.iterdir())
    runs: list[dict[str, Any]] = []
    dropped = ""
    for pair in range(options.pairs):
        for kind in ("copy", "convert") if pair % 2 == 0 else ("convert", "copy"):
            shutil.rmtree(target, ignore_errors=True)
            dropped = drop_cache(options.folder)
            load = os.getloadavg()[0]
            if kind == "copy":
                run = time_copy(source, target)
            else:
                run = time_convert(source, target, options.recipe)
            runs.append({"pair": pair, "kind": kind, "load_before": load, **run})
            print(json.dumps(runs[-1]), flush=True)
    shutil.rmtree(target, ignore_errors=True)
    report = summarise(runs, size) | {"recipe": options.recipe, "cache": dropped, "runs": runs}
    print(json.dumps({key: value for key, value in report.items() if key != "runs"}, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


def summarise(runs: list[dict[str, Any]], size: int) -> dict[str, Any]:
    def median(kind: str, key: str) -> float:
        return statistics.median(run[key] for run in runs if run["kind"] == kind)

    pairs: dict[int, dict[str, float]] = {}
    for run in runs:
        pairs.setdefault(run["pair"], {})[run["kind"]] = run["seconds"]
    copy, convert = median("copy", "seconds"), median("convert", "seconds")
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "source_bytes": size,
        "copy_seconds": round(copy, 2),
        "convert_seconds": round(convert, 2),
        "copy_mb_per_second": round(size / copy / 1e6),
        "convert_mb_per_second": round(size / convert / 1e6),
        "ratio_of_medians": round(copy / convert, 3),
        "median_of_pair_ratios": round(
            statistics.median(p["copy"] / p["convert"] for p in pairs.values()), 3
        ),
        "load_average": round(statistics.median(run["load_before"] for run in runs), 1),
        "cpu_seconds": round(median("convert", "cpu_seconds"), 2),
        "hash_cpu_seconds": round(median("convert", "hash_seconds"), 2),
        "hash_share_of_cpu": round(median("convert", "hash_seconds") / median("convert", "cpu_seconds"), 3),
    }


if __name__ == "__main__":
    main()
