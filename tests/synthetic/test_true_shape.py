"""Every release at its true shape through what comes before an answer, and V4-Flash through a step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from blank import BlankArrays, BlankSlots
from synthetic.test_holes import DISK, check_headers, disk

from dsv4_mlx.cli.main import run
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.synthetic import release_config
from dsv4_mlx.synthetic.configs import Release
from dsv4_mlx.synthetic.holes import write_converted, write_holes
from dsv4_mlx.weights.load import assemble, find_model
from dsv4_mlx.weights.resident_experts import ResidentExperts

pytestmark = pytest.mark.long

RELEASES: tuple[Release, ...] = ("flash", "0731", "base", "pro")
MOST_MEMORY = 14e9
CODE = """
import json, os, resource, sys, time
from pathlib import Path
import numpy as np
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.engine.engine_options import EngineOptions
begin = time.perf_counter()
options = EngineOptions(context=512, expert_memory="1x", expert_threads=2)
engine = Engine.open(Path(sys.argv[1]), options)
opened = time.perf_counter() - begin
logits = engine.session().sync([5])
sums = engine.pager.sums()
print(json.dumps({
    "opened": opened, "step": time.perf_counter() - begin - opened, "shape": logits.shape,
    "finite": bool(np.isfinite(logits).all()), "spread": float(logits.std()),
    "experts": sums["hits"] + sums["early"] + sums["misses"],
    "files": len(os.listdir("/dev/fd")),
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


@pytest.mark.parametrize("release", RELEASES)
def test_every_release(
    release: Release,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """Headers, `info`, `plan`; built with every expert in memory and with one a layer, not evaluated."""
    official = tmp_path / "official"
    started = time.perf_counter()
    write_holes(official, release_config(release, true_size=True))
    check_headers(official)
    for name in ("official", *RECIPES):
        folder = tmp_path / name
        if name != "official":
            write_converted(official, folder, name)
        record_property(f"{name} MB of disk", round(disk(folder) / 1e6))
        assert release == "pro" or disk(folder) <= DISK
        assert run(["info", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["recipe"] == name
        assert run(["plan", str(folder), "--for", "512GB", "--json"]) == 0
        plans = json.loads(capsys.readouterr().out)["options"]
        assert name in [option["name"] for option in plans]
        stored, before = find_model(folder), mx.get_active_memory()
        for slots in (None, 1):
            paged = None if slots is None else BlankSlots(slots, mx.bfloat16)
            arrays = BlankArrays(stored) if name == "official" else stored.arrays(lambda count: None)
            model = assemble(stored, arrays, REFERENCE, EXACT, paged)
            for block in model.blocks:
                assert isinstance(block.ffn.experts, ResidentExperts)
                count = slots or stored.config.experts
                assert block.ffn.experts.gate_up.codes.shape[0] == count
                assert block.ffn.experts.down.codes.shape[:2] == (count, stored.config.hidden_size)
            assert mx.get_active_memory() - before < 1e9
            del model
    record_property("s", round(time.perf_counter() - started))


@pytest.fixture(scope="module")
def flash(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("flash")
    folders = {name: place / name for name in ("official", "native")}
    write_holes(folders["official"], release_config("flash", true_size=True))
    write_converted(folders["official"], folders["native"])
    return folders


@pytest.mark.parametrize("kind", ["official", "native"])
def test_a_step_with_one_expert_a_layer(
    kind: str, flash: dict[str, Path], record_property: Callable[[str, object], None]
) -> None:
    """43 layers, 256 experts, 129,280 tokens: opened and run on this machine."""
    call = [sys.executable, "-c", CODE, str(flash[kind])]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    record_property("MB of disk", round(disk(flash[kind]) / 1e6))
    record_property("opened s", round(found["opened"]))
    record_property("step s", round(found["step"]))
    record_property("peak GB", round(found["peak"] / 1e9, 1))
    record_property("open files", found["files"])
    assert found["shape"] == [129_280] and found["finite"] and found["spread"] > 0
    assert found["experts"] == 43 * 6
    assert found["peak"] < MOST_MEMORY and disk(flash[kind]) <= DISK
    assert found["files"] < 128, "macOS allows 256 unless told otherwise"
