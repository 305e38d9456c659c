"""A session's state in a file: bit-equal when it comes back, refused when anything differs."""

from __future__ import annotations

import platform
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from small_model import new_session, tiny_model, token_ids

from bench.demo_model.trainable import TRAINABLE
from dsv4_mlx.checkpoint.manifest import Manifest
from dsv4_mlx.engine import session_file as saved
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.engine.session import Session
from dsv4_mlx.machine import mlx_switches
from dsv4_mlx.model.transformer import Transformer
from dsv4_mlx.ops.kernels.launch import metal
from dsv4_mlx.ops.table import NUMERIC_VERSION, REFERENCE, with_kernels

WHO = "this model"


@pytest.fixture(scope="module")
def model() -> Transformer:
    return tiny_model()


def prompt(length: int) -> list[int]:
    return token_ids(np.random.default_rng(3), length)


def stored(model: Transformer, path: Path, length: int = 1200) -> Session:
    session = new_session(model, growth=128)
    session.sync(prompt(length))
    for token in (9, 10, 11):
        session.advance(token)
    kept = saved.point_to_save(session, [*prompt(length), 12])
    assert kept == length // 512 * 512
    saved.save(session, kept, path, WHO)
    assert abs(path.stat().st_size - saved.saved_bytes(session, kept)) < 8192
    return session


def test_what_follows_is_bit_equal_to_a_session_that_was_never_saved(
    model: Transformer, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    stored(model, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and [*tmp_path.iterdir()] == [path]
    following = [*prompt(1200), 40, 41, 42]
    cold, warm = new_session(model, growth=128), new_session(model, growth=128)
    wanted = cold.sync(following)
    assert saved.load(warm, path, WHO) == 1024
    found = warm.sync(following)
    assert warm.cached == 1024 and np.array_equal(found, wanted)
    for token in range(50, 60):
        assert np.array_equal(warm.advance(token), cold.advance(token))
    warm.take_back(8)
    cold.take_back(8)
    assert np.array_equal(warm.advance(70), cold.advance(70))


def test_a_conversation_that_differs_early_saves_less_or_nothing(model: Transformer) -> None:
    session = new_session(model)
    session.sync(prompt(1200))
    assert saved.point_to_save(session, [*prompt(600), 1, 2]) == 512
    assert saved.point_to_save(session, [3, *prompt(600)]) == 0


def test_another_model_a_damaged_file_or_a_small_context_is_refused(
    model: Transformer, tmp_path: Path
) -> None:
    path = tmp_path / "state.safetensors"
    stored(model, path, 600)
    good = path.read_bytes()
    assert saved.load(new_session(model), path, "another model") == 0
    assert saved.load(new_session(model, context=100), path, WHO) == 0
    assert saved.load(new_session(model), tmp_path / "none", WHO) == 0
    for place in (0, 9, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        session = new_session(model)
        assert saved.load(session, path, WHO) == 0 and session.tokens == []
    path.write_bytes(good[: len(good) // 2])
    assert saved.load(new_session(model), path, WHO) == 0
    path.write_bytes(good)
    assert saved.load(new_session(tiny_model(head_dim=64)), path, WHO) == 0
    assert saved.load(new_session(model), path, WHO) == 512


MANIFEST = Manifest("native", "april", {}, {}, {}, {})
ON_METAL = mx.metal.is_available()
OPTIONS = EngineOptions(ops=with_kernels(metal))
Patch = Callable[[pytest.MonkeyPatch], object]
# What is another, and how; each alone makes a saved state one that would not have been computed here.
MACHINES: dict[str, Patch] = {
    "mlx": lambda patch: patch.setattr(saved, "version", lambda name: "0.0"),
    "architecture": lambda patch: patch.setattr(mx, "device_info", lambda: {"architecture": "applegpu_g99"}),
    "device": lambda patch: patch.setattr(mx.metal, "is_available", lambda: not ON_METAL),
    "numeric version": lambda patch: patch.setattr(saved, "NUMERIC_VERSION", NUMERIC_VERSION + 1),
    "system": lambda patch: patch.setattr(platform, "mac_ver", lambda: ("99.1",)),
    "format": lambda patch: patch.setattr(saved, "FORMAT", "0"),
    "tf32": lambda patch: patch.setattr(mlx_switches, "setting", lambda: "1"),
}
ENGINES: dict[str, tuple[Manifest, EngineOptions]] = {
    "model": (replace(MANIFEST, recipe="4bit"), OPTIONS),
    "numerics": (MANIFEST, replace(OPTIONS, numerics="exact")),
    "references": (MANIFEST, replace(OPTIONS, ops=REFERENCE)),
    "one kernel less": (MANIFEST, replace(OPTIONS, ops=with_kernels(metal, ["attend"]))),
    "other references": (MANIFEST, replace(OPTIONS, ops=TRAINABLE)),
}


@pytest.fixture(scope="module")
def file(model: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("states") / "state.safetensors"
    session = new_session(model)
    session.sync(prompt(600))
    saved.save(session, 512, path, saved.identity(MANIFEST, OPTIONS, session))
    return path


def loaded(
    model: Transformer, file: Path, manifest: Manifest = MANIFEST, options: EngineOptions = OPTIONS
) -> int:
    session = new_session(model)
    return saved.load(session, file, saved.identity(manifest, options, session))


@pytest.mark.parametrize("what", MACHINES)
def test_a_state_of_another_arithmetic_is_not_used(
    what: str, model: Transformer, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded(model, file) == 512
    MACHINES[what](monkeypatch)
    assert loaded(model, file) == 0
    monkeypatch.undo()
    assert loaded(model, file) == 512


@pytest.mark.parametrize("what", ENGINES)
def test_a_state_of_another_engine_is_not_used(what: str, model: Transformer, file: Path) -> None:
    assert loaded(model, file, *ENGINES[what]) == 0


def test_a_state_of_another_dtype_is_not_used(file: Path) -> None:
    class Other:
        dtype = mx.bfloat16

    session: Any = type("Session", (), {"model": Other})
    assert saved.load(new_session(tiny_model()), file, saved.identity(MANIFEST, OPTIONS, session)) == 0


def test_ops_name_themselves_the_same_in_every_run() -> None:
    """By where their functions are defined: no address, nothing that is made at run time."""
    for ops in (REFERENCE, TRAINABLE, with_kernels(metal)):
        assert " at 0x" not in ops.identity() and "<" not in ops.identity()
    assert with_kernels(metal).identity() == OPTIONS.ops.identity()
    named = dict(pair.split("=") for pair in with_kernels(metal, ["attend"]).identity().split())
    assert named["attend"] == "dsv4_mlx.ops.reference.attend.attend"
    assert named["hc_post"] == "dsv4_mlx.ops.kernels.hc_post.hc_post"


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    import os

    for i in range(6):
        path = tmp_path / f"{i}.safetensors"
        path.touch()
        os.utime(path, (i, i))
    saved.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.safetensors", "5.safetensors"]
