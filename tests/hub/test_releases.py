"""Every release by the same code: planned, downloaded, converted while it comes, proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checkpoint.damage import INDEX, edit_json, write_shard
from hub.conftest import QUICK, same
from hub.fake_hub import REPOSITORY, Hub, serving

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.convert.run import convert
from dsv4_mlx.convert.verify import verify
from dsv4_mlx.hub.download import DownloadStep, convert_from_hub, download, source_folder
from dsv4_mlx.planning.candidates import candidates_for
from dsv4_mlx.planning.fit import MemoryBudget
from dsv4_mlx.planning.plan import plan
from dsv4_mlx.planning.speed import Speeds
from dsv4_mlx.synthetic import cut, release_config, write_checkpoint


def shrunk(release: Any, **changes: object) -> dict[str, Any]:
    config = cut(release_config(release), layers=4, experts=4) | changes
    return {key: value for key, value in config.items() if value is not None}


# name -> (config, draft blocks)
RELEASES: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "V4-Flash of April": (lambda: shrunk("flash"), 1),
    "V4-Flash-Base": (lambda: shrunk("base"), 1),
    "V4-Flash-0731": (lambda: shrunk("0731"), 3),
    "V4-Flash-DSpark": (lambda: shrunk("0731", n_mtp_layers=None, expert_dtype=None), 3),
    "V4-Pro": (lambda: shrunk("pro"), 1),
}


@pytest.mark.parametrize("name", RELEASES)
def test_a_release(name: str, tmp_path: Path) -> None:
    make, blocks = RELEASES[name]
    official, target = tmp_path / "official", tmp_path / "out"
    write_checkpoint(official, make(), 3)
    with serving(Hub(official, redirect=True)) as hub:
        download(REPOSITORY, tmp_path / "files", endpoint=hub.endpoint, retry=QUICK)
        assert same(tmp_path / "files", official)
        summary = convert_from_hub(REPOSITORY, target, delete=True, endpoint=hub.endpoint, retry=QUICK)
    report = verify(target, official)
    assert report.ok and report.lossless and summary.tensors > 0
    assert {f"mtp.{number}" for number in range(blocks)} <= read_manifest(target).experts.keys()
    assert summary.extra == tuple(f"mtp.{number}" for number in range(blocks))
    convert(tmp_path / "files", tmp_path / "again")
    assert same(target, tmp_path / "again")
    ways, config = candidates_for(official)
    options = plan(ways, config, MemoryBudget(1 << 36, 4), Speeds(), "here").options
    native = next(option for option in options if option.name == "native")
    assert native.disk.kept == sum(path.stat().st_size for path in target.iterdir())
    assert native.fit.placement == "resident"


@pytest.mark.parametrize("delete", [False, True])
def test_a_shard_of_copies_only(delete: bool, tmp_path: Path) -> None:
    """Nothing is made from it; the checkpoint that stays beside the result has it all the same."""
    official, target = tmp_path / "official", tmp_path / "out"
    write_checkpoint(official, shrunk("base"), 3)
    convert(official, tmp_path / "expected")
    config = shrunk("base")
    shape = [config["vocab_size"], config["hidden_size"]]
    copy: dict[str, tuple[str, list[int], bytes]] = {
        "mtp.0.head.weight": ("BF16", shape, bytes(shape[0] * shape[1] * 2))
    }
    more = write_shard(official / "model-copies.safetensors", copy)

    def listed(index: dict[str, Any]) -> None:
        index["weight_map"]["mtp.0.head.weight"] = "model-copies.safetensors"
        index["metadata"]["total_size"] += more

    edit_json(official / INDEX, listed)
    steps: list[DownloadStep] = []
    with serving(Hub(official)) as hub:
        summary = convert_from_hub(
            REPOSITORY, target, delete=delete, endpoint=hub.endpoint, retry=QUICK, progress=steps.append
        )
    done = [step.done for step in steps if step.stage == "downloading"]
    total = sum(path.stat().st_size for path in official.glob("*.safetensors"))
    assert done[-1] == total and sorted(set(done)).index(total) == len(set(done)) - 1
    assert done.count(total) == 1, "nothing is counted twice"
    assert summary.left_out == ("mtp.0.head.weight",)
    assert verify(target, official).lossless
    for path in (tmp_path / "expected").glob("*.safetensors"):
        assert (target / path.name).read_bytes() == path.read_bytes()
    assert source_folder(target).exists() != delete
    assert delete or same(source_folder(target), official)
