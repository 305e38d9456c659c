"""Memory is bounded by the block, not by the model."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from dsv4_mlx.convert import pipeline as stream
from dsv4_mlx.convert.run import convert
from dsv4_mlx.synthetic import cut, release_config, small_config, write_checkpoint
from dsv4_mlx.synthetic.configs import Release


@pytest.mark.parametrize("experts", ["fp4", "fp8"])
@pytest.mark.parametrize("recipe", ["native", "4bit"])
def test_blocks_bound_memory(recipe: str, experts: str, tmp_path: Path) -> None:
    """A layer of 20 MB goes through blocks of 64 KB without more than a few of them being alive."""
    block = 64 * 1024
    config = cut(small_config(), layers=1, experts=40) | {
        "hidden_size": 512,
        "moe_intermediate_size": 512,
        "num_nextn_predict_layers": 0,
        "compress_ratios": [0],
        "vocab_size": 4096,
        "expert_dtype": experts,
    }
    write_checkpoint(tmp_path / "source", config)
    convert(tmp_path / "source", tmp_path / "warm", recipe, block=block)  # imports, code tables
    tracemalloc.start()
    try:
        convert(tmp_path / "source", tmp_path / "target", recipe, block=block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A quantised step never goes below 128 rows (256 KB as float32), with a few copies per reader, nor below
    # an expert.
    record = 3 * 512 * 512 * 9 // 16 if (recipe, experts) == ("4bit", "fp8") else 0
    allowed = stream.DEPTH * (block + record) + 2_500_000
    assert peak < allowed, f"{peak / 1e6:.1f} MB at the peak, {allowed / 1e6:.1f} MB allowed"


PEAK = """
import json, resource, sys
from pathlib import Path
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.verify import verify
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
before = peak()
summary = convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
converting = peak() - before
report = verify(Path(sys.argv[2]), Path(sys.argv[1]))
print(json.dumps({
    "convert_peak": converting, "verify_peak": peak() - before, "bytes": summary.bytes,
    "convert_seconds": summary.seconds, "verify_seconds": report.seconds,
    "ok": report.ok, "lossless": report.lossless,
    "errors": {part: error.relative for part, error in report.errors.items() if error.relative},
}))
"""


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["native", "4bit"])
@pytest.mark.parametrize(("release", "experts"), [("flash", 256), ("base", 128)])
def test_a_true_size_layer(release: Release, experts: int, recipe: str, tmp_path: Path) -> None:
    """3.6 GB in one layer: at most 2 GiB above the interpreter; `verify` proves every tensor."""
    config = cut(release_config(release, true_size=True), layers=1, experts=experts)
    config |= {"num_nextn_predict_layers": 0, "compress_ratios": [0], "vocab_size": 4096}
    write_checkpoint(tmp_path / "source", config)
    given = [str(tmp_path / "source"), str(tmp_path / "target"), recipe]
    done = subprocess.run([sys.executable, "-c", PEAK, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    print(facts)
    assert facts["convert_peak"] <= 2 * 2**30 and facts["verify_peak"] <= 2 * 2**30
    assert facts["ok"] and facts["lossless"] == (recipe == "native")
