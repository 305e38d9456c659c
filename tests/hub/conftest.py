"""A small official checkpoint, what it converts to, and a network for a Hub on this machine only."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest

from dsv4_mlx.convert.run import convert
from dsv4_mlx.hub import ranges
from dsv4_mlx.hub.remote import Retry
from dsv4_mlx.synthetic import small_config, write_checkpoint
from dsv4_mlx.synthetic.configs import cut

QUICK = Retry(tries=4, first=0.0, longest=0.0)


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards: embedding, three layers, head, draft block."""
    folder = tmp_path_factory.mktemp("hub") / "official"
    write_checkpoint(folder, cut(small_config(), layers=3), 0)
    assert len(list(folder.glob("*.safetensors"))) == 6
    return folder


@pytest.fixture(scope="session")
def converted(official: Path) -> Path:
    convert(official, official.parent / "converted")
    return official.parent / "converted"


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(ranges, "BLOCK", 1 << 16)  # or these small shards would come in one range each
    monkeypatch.setattr(ranges, "SPAN", 2)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


def same(left: Path, right: Path) -> bool:
    """Whether two folders hold the same files, dot files aside."""
    names = [sorted(p.name for p in folder.iterdir() if p.name[0] != ".") for folder in (left, right)]
    return names[0] == names[1] and all(
        (left / name).read_bytes() == (right / name).read_bytes() for name in names[0]
    )
