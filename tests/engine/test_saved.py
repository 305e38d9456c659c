"""A session's state in a file: bit-equal when it comes back, refused when anything differs."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
from small_model import new_session, tiny_model, token_ids

from dsv4_mlx.engine import saved
from dsv4_mlx.engine.session import Session
from dsv4_mlx.model.transformer import Transformer

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
    assert warm.reused == 1024 and np.array_equal(found, wanted)
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


def test_only_the_latest_are_kept(tmp_path: Path) -> None:
    import os

    for i in range(6):
        path = tmp_path / f"{i}.safetensors"
        path.touch()
        os.utime(path, (i, i))
    saved.prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4.safetensors", "5.safetensors"]
