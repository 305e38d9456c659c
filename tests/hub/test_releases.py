"""Every release by the same code: planned, downloaded, converted while it comes, proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub.conftest import QUICK, same
from hub.standin import REPOSITORY, Hub, serving

from dsv4_mlx.convert import convert, verify
from dsv4_mlx.hub import convert_from_hub, download
from dsv4_mlx.manifest import read_manifest
from dsv4_mlx.planning import plan
from dsv4_mlx.planning.model import ways_of
from dsv4_mlx.planning.predict import Speeds
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
        download(REPOSITORY, tmp_path / "files", endpoint=hub.endpoint, patience=QUICK)
        assert same(tmp_path / "files", official)
        summary = convert_from_hub(REPOSITORY, target, delete=True, endpoint=hub.endpoint, patience=QUICK)
    report = verify(target, official)
    assert report.ok and report.lossless and summary.tensors > 0
    assert {f"mtp.{number}" for number in range(blocks)} <= read_manifest(target).experts.keys()
    assert summary.extra == tuple(f"mtp.{number}" for number in range(blocks))
    convert(tmp_path / "files", tmp_path / "again")
    assert same(target, tmp_path / "again")
    ways, config = ways_of(official)
    native = next(o for o in plan(ways, config, 1 << 36, 4, Speeds(), "here").options if o.name == "native")
    assert native.disk.kept == sum(path.stat().st_size for path in target.iterdir())
    assert native.fit.how == "resident"
