"""One layer of the true size with all 256 experts: the same bits, however many of them are in memory.

3.4 GB of records, more than 2^31 bytes; so has a bank of 161 slots and more. Widths are V4-Flash's, but for a
vocabulary of 4,096.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4_mlx.convert.run import convert
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint

pytestmark = pytest.mark.long

EXPERTS, PROMPT, DECODED = 256, 20, 4
CODE = """
import hashlib, json, resource, sys, time
from pathlib import Path
import numpy as np
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
begin = time.perf_counter()
engine = Engine.open(Path(sys.argv[1]), EngineOptions(context=512, expert_memory=sys.argv[2]))
opened = time.perf_counter() - begin
session, digest = engine.session(), hashlib.sha256()
tokens = list(range(300, 300 + int(sys.argv[3])))
logits = session.sync(tokens)
for _ in range(int(sys.argv[4])):
    assert np.isfinite(logits).all() and logits.std() > 0
    digest.update(logits.tobytes())
    tokens.append(int(np.argmax(logits)))
    logits = session.advance(tokens[-1])
used = np.unique(np.array(engine.model.blocks[0].ffn.experts_by_token)[tokens])
print(json.dumps({
    "bits": digest.hexdigest(), "tokens": tokens, "used": used.tolist(), "opened": opened,
    "seconds": time.perf_counter() - begin, "paged": engine.pager is not None,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hashed CSA layer: a token's experts are known, so that it is known which are used."""
    folder = tmp_path_factory.mktemp("layer") / "official"
    config = cut(release_config("flash", true_size=True), layers=1)
    assert config["n_routed_experts"] == EXPERTS
    config |= {"compress_ratios": [4], "num_nextn_predict_layers": 0, "vocab_size": 4096}
    write_checkpoint(folder, config)
    return folder


@pytest.fixture(scope="module")
def native(official: Path) -> Path:
    folder = official.with_name("native")
    convert(official, folder)
    return folder


def run(folder: Path, memory: str) -> dict[str, Any]:
    call = [sys.executable, "-c", CODE, str(folder), memory, str(PROMPT), str(DECODED)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_all_experts_of_a_layer(
    official: Path, native: Path, record_property: Callable[[str, object], None]
) -> None:
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for folder in (native, official):
        for memory in ("100%", "255x", "161x", "20x"):
            one = found[folder.name, memory] = run(folder, memory)
            record_property(f"{folder.name} {memory}: s", round(one["seconds"], 1))
            record_property(f"{folder.name} {memory}: peak GB", round(one["peak"] / 1e9, 2))
            assert one["paged"] == (memory != "100%")
            assert one["peak"] < 12e9
    assert len({(one["bits"], tuple(one["tokens"])) for one in found.values()}) == 1
    used = next(iter(found.values()))["used"]
    assert len(used) > 80 and used[0] < 20 and used[-1] > 250
