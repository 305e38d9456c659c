"""Small official checkpoints, written once per test run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dsv4_mlx.synthetic import cut, release_config, small_config, write_checkpoint


def awkward_config() -> dict[str, Any]:
    """Widths that 128 doesn't divide, of which some aren't multiples of 64; odd counts of everything else."""
    return cut(small_config(), layers=4, experts=5) | {
        "hidden_size": 160,
        "q_lora_rank": 96,
        "moe_intermediate_size": 224,
        "num_attention_heads": 6,
        "head_dim": 48,
        "o_groups": 3,
        "o_lora_rank": 32,
        "vocab_size": 515,
        "index_n_heads": 17,
    }


def base_config() -> dict[str, Any]:
    """Experts of FP8, as in V4-Flash-Base, each with several blocks of scales, some of them partial."""
    config = cut(small_config(), layers=4, experts=5)
    return config | {"hidden_size": 192, "moe_intermediate_size": 320, "expert_dtype": "fp8"}


CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "small": small_config,
    "awkward": awkward_config,
    "base": base_config,
    "narrow base": lambda: base_config() | {"moe_intermediate_size": 224},
    "awkward base": lambda: awkward_config() | {"expert_dtype": "fp8"},
    "0731": lambda: cut(release_config("0731"), layers=4, experts=4),
    "pro": lambda: cut(release_config("pro"), layers=4, experts=4),
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name -> official folder; read only."""
    home = tmp_path_factory.mktemp("official")

    def folder(name: str) -> Path:
        path = home / name
        if not path.exists():
            write_checkpoint(path, CONFIGS[name](), seed=len(name))
        return path

    return folder


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power is not cut in these tests (children that are killed do sync): saves most of their time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def source(checkpoints: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoints("small"), tmp_path / "source"))
