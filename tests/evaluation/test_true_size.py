"""`check` and `eval` on layers of the true size: time, memory, and planted damage. Random weights.

Two layers, a hashed CSA and an HCA, with 128 of the 256 experts and a vocabulary of 4,096: 3.8 GB
twice, for the disk's sake. Every other size is V4-Flash's. Random weights find no needle: that is expected. A
processor is slow at mxfp4 products, so texts are short: 12 tokens cut, an answer of 8; and only once a chunk
of 136 for each layer, and needles in 100 tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluation.acceptance_helpers import data_begin, digest_anew, offset_of, overwrite, quiet

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.convert.run import convert
from dsv4_mlx.evaluation.file_checks import files
from dsv4_mlx.evaluation.layers import layers
from dsv4_mlx.ops.table import REFERENCE
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint
from dsv4_mlx.weights.load import find_model

pytestmark = pytest.mark.long

CHECK = """
import json, resource, sys
from contextlib import contextmanager
from pathlib import Path
from dsv4_mlx.evaluation import layers, long_run
from dsv4_mlx.evaluation.acceptance import AcceptanceOptions, AcceptanceTools, accept
from dsv4_mlx.ops.table import REFERENCE
@contextmanager
def bar(title, unit):
    yield lambda done, total: None
long_run.CUT_TOKENS, long_run.CHUNKS, layers.PREFILL = 12, (5, 8), int(sys.argv[3])
lengths = tuple(int(length) for length in sys.argv[4:])
wanted = AcceptanceOptions(lengths=lengths, tokens=8, engine=EngineOptions(expert_memory=sys.argv[2]))
found = accept(Path(sys.argv[1]), AcceptanceTools(REFERENCE), wanted, bar, lambda known: None).to_json()
unit = 1 if sys.platform == "darwin" else 1024
found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
print(json.dumps(found))
"""
EVAL = """
import json, resource, sys, time
from pathlib import Path
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.evaluation.perplexity import evaluate
begin = time.perf_counter()
reference = Path(sys.argv[3]) if len(sys.argv) > 3 else None
text = "The quick brown fox jumps over the lazy dog. " * 30
options = EngineOptions(expert_memory=sys.argv[2])
found = evaluate(Path(sys.argv[1]), text, 16, options, reference, lambda done, total: None).to_json()
unit = 1 if sys.platform == "darwin" else 1024
found["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
found["seconds"] = time.perf_counter() - begin
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3.8 GB."""
    folder = tmp_path_factory.mktemp("true") / "official"
    config = cut(release_config("flash", true_size=True), layers=2, experts=128)
    config |= {"compress_ratios": [4, 128], "num_hash_layers": 1, "num_nextn_predict_layers": 0}
    write_checkpoint(folder, config | {"vocab_size": 4096})
    return folder


@pytest.fixture(scope="module")
def converted(official: Path) -> Path:
    folder = official.with_name("converted")
    convert(official, folder)
    return folder


def run(script: str, *arguments: str) -> dict[str, Any]:
    call = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("memory", ["100%", "25%"])
@pytest.mark.parametrize("kind", ["converted", "official"])
def test_check(
    kind: str, memory: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    folder = request.getfixturevalue(kind)
    whole = (kind, memory) == ("converted", "100%")
    needles = ["100"] if whole else []
    found = run(CHECK, str(folder), memory, "136" if whole else "8", *needles)
    steps = {step["name"]: step for step in found["steps"]}
    verdicts = {name: step["ok"] for name, step in steps.items()}
    assert verdicts == {
        "files": True if kind == "converted" else None, "numbers": True, "kernels": None, "layers": True,
        "cuts, exact": True, "cuts, official": True, "log-probabilities": None,
        "long answer, official": True, "long answer, exact": True,
    } | {f"needles in {length} tokens": False for length in needles}  # fmt: skip
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    record_property("GB on disk", round(size / 1e9, 2))
    record_property("peak GB", round(found["peak"] / 1e9, 2))
    record_property("layers s", steps["layers"]["seconds"])
    record_property("all s", round(sum(step["seconds"] for step in steps.values())))
    assert found["peak"] < size + (4 << 30)  # the estimate of `plan` for the work beside the weights


@pytest.mark.parametrize("memory", ["100%", "25%"])
def test_eval(
    memory: str, converted: Path, official: Path, record_property: Callable[[str, object], None]
) -> None:
    """The official folder and its conversion are the same model: no distance, and less than the floor."""
    found = run(EVAL, str(converted), memory, str(official))
    record_property("peak GB", round(found["peak"] / 1e9, 2))
    record_property("s", round(found["seconds"]))
    record_property("floor", f"{found['floor']['kl']['value']:.2g}")
    assert found["distance"]["kl"]["value"] == 0
    assert found["floor"]["kl"]["value"] > 0
    assert found["beyond_floor"] is False
    size = sum(file.stat().st_size for file in converted.glob("*.safetensors"))
    assert found["peak"] < size + (4 << 30)


@pytest.fixture
def damaged(converted: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the files that will be damaged; the others are links to the same data."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for file in converted.iterdir():
        if file.name in ("layer-01.safetensors", "layer-01.experts.safetensors", "manifest.json"):
            (folder / file.name).write_bytes(file.read_bytes())
        else:
            os.link(file, folder / file.name)
    yield folder


def test_planted_damage(damaged: Path, official: Path) -> None:
    """Each is named, by the digests and, where they were made anew, by the source."""
    dense = damaged / "layer-01.safetensors"
    at = offset_of(dense, "layers.1.attn.wq_a.weight") + 12_345
    overwrite(dense, at, bytes([_byte(dense, at) ^ 1]))
    at = offset_of(dense, "layers.1.attn.wo_b.scales") + 77
    overwrite(dense, at, bytes([_byte(dense, at) + 1]))
    table = read_manifest(damaged).experts["layers.1"]
    experts, size = damaged / table.file, table.record_bytes
    with experts.open("rb") as file:
        file.seek(data_begin(experts) + 3 * size)
        pair = file.read(2 * size)
    overwrite(experts, data_begin(experts) + 3 * size, pair[size:] + pair[:size])
    named = {
        f"{dense.name} layers.1.attn.wq_a.weight",
        f"{dense.name} layers.1.attn.wo_b.weight",
        f"{experts.name} layers.1.ffn.experts.3",
        f"{experts.name} layers.1.ffn.experts.4",
    }
    step = files(damaged, read_manifest(damaged), None, quiet)
    assert {line.split(":")[0] for line in step.found} == named
    digest_anew(damaged)
    assert files(damaged, read_manifest(damaged), None, quiet).ok is True
    step = files(damaged, read_manifest(damaged), official, quiet)
    assert {line.split(":")[0] for line in step.found} == named


def _byte(file: Path, at: int) -> int:
    with file.open("rb") as data:
        data.seek(at)
        return data.read(1)[0]


def test_a_wrong_kernel(converted: Path) -> None:
    ops = replace(REFERENCE, hc_post=lambda streams: REFERENCE.hc_post(streams) * 1.001)
    step = layers(find_model(converted), ops, None, quiet)
    assert {line.split(":")[0] for line in step.found} == {
        f"layer {i}, {what}" for i in (0, 1) for what in ("prefill", "decode")
    }
