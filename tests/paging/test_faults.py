"""What can happen to a disk, a file or a process while a model is being used."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from paging.paged_model import Model
from paging.test_exact import Late, layers

from dsv4_mlx.checkpoint.manifest import read_manifest
from dsv4_mlx.engine.engine import Engine
from dsv4_mlx.errors import InputError, MachineError
from dsv4_mlx.paging.stats import total

Read = Callable[[Path, int, Sequence[memoryview]], None]


@pytest.fixture
def own(model: Model, tmp_path: Path) -> Model:
    """The shared model in a folder that the test may damage."""
    shutil.copytree(model.folder, tmp_path / "model")
    return Model(tmp_path / "model", model.tokens, model.logits)


def expert_file(folder: Path, layer: int = 2) -> Path:
    return folder / f"layer-{layer:02}.experts.safetensors"


class Failing:
    """Reads fail while `wrong()` says so."""

    def __init__(self, engine: Engine, wrong: Callable[[], bool], code: int = errno.EIO) -> None:
        assert engine.pager is not None
        self._read: Read = engine.pager.files.read
        self._wrong, self._code = wrong, code
        self.failed = 0
        engine.pager.files.read = self  # type: ignore[method-assign]

    def __call__(self, path: Path, offset: int, into: Sequence[memoryview]) -> None:
        if self._wrong():
            self.failed += 1
            raise OSError(self._code, os.strerror(self._code))
        self._read(path, offset, into)


def test_a_file_that_is_cut_off_is_named(own: Model) -> None:
    engine = own.open("2x")
    own.score(engine)
    path = expert_file(own.folder)
    os.truncate(path, path.stat().st_size // 8)
    with pytest.raises(InputError, match="the file ends at byte|has been changed") as caught:
        own.score(engine)
    assert caught.value.where == str(path)


def test_a_file_that_is_written_over_is_noticed_before_its_bytes_are_used(own: Model) -> None:
    engine = own.open("2x")
    own.score(engine)
    path = expert_file(own.folder)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(size - size // 2))
    with pytest.raises(InputError, match="has been changed since it was opened"):
        own.score(engine)


def test_a_file_that_is_replaced_is_read_on_as_it_was(own: Model) -> None:
    engine = own.open("2x")
    for layer in range(4):
        path = expert_file(own.folder, layer)
        other = path.with_suffix(".new")
        other.write_bytes(bytes(path.stat().st_size))
        other.replace(path)
    assert np.array_equal(own.score(engine), own.logits)


def test_a_read_that_fails_once_is_tried_again(model: Model) -> None:
    engine = model.open("3x")
    times = iter([True, True, False, True] + [False] * 100_000)
    failing = Failing(engine, lambda: next(times))
    assert np.array_equal(model.score(engine), model.logits)
    assert failing.failed == 3


@pytest.mark.parametrize("code", [errno.EIO, errno.ENXIO, errno.ESTALE])
def test_a_disk_that_is_gone_ends_the_answer_and_not_the_program(model: Model, code: int) -> None:
    engine = model.open("3x", expert_threads=4)
    session, gone = engine.session(), [False]
    Failing(engine, lambda: gone[0], code)
    first = session.sync(model.tokens[:20])
    gone[0] = True
    with pytest.raises(MachineError, match="can't be read: .*, tried 3 times") as caught:
        for token in model.tokens[20:40]:
            session.advance(token)
    assert "experts.safetensors" in str(caught.value.where)
    assert caught.value.exit_code == 3
    gone[0] = False
    assert np.array_equal(session.sync(model.tokens[:20]), first)
    assert np.array_equal(model.score(engine), model.logits)


def test_a_slow_disk_costs_time_only(model: Model) -> None:
    engine = model.open("6x", expert_threads=4)
    assert engine.pager is not None
    engine.pager.pool.reader = Late(engine.pager.pool.reader, 0, most=0.02)
    whole = model.open("100%")
    started = time.perf_counter()
    assert np.array_equal(engine.session().sync(model.tokens[:30]), whole.session().sync(model.tokens[:30]))
    stall = total([layer.stats for layer in layers(engine)]).stall
    assert 0.01 < stall < time.perf_counter() - started


def test_damaged_records_are_found_when_reads_are_verified(own: Model) -> None:
    path = expert_file(own.folder)
    table = read_manifest(own.folder).experts["layers.2"]
    start = path.stat().st_size - table.count * table.record_bytes
    with path.open("r+b") as file:
        for expert in range(table.count):  # one bit each, as a dying disk does
            file.seek(start + expert * table.record_bytes + 100)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 4]))
    with pytest.raises(InputError, match=r"expert \d+ has the SHA-256 .*damaged") as caught:
        own.score(own.open("2x", verify_reads=True))
    assert caught.value.where == str(path)
    assert not np.array_equal(own.score(own.open("2x")), own.logits)  # nobody looked


def test_sound_records_pass_the_check(model: Model) -> None:
    assert np.array_equal(model.score(model.open("3x", verify_reads=True)), model.logits)


def run(model: Model, out: Path, memory: str = "2x") -> subprocess.Popen[bytes]:
    """A process that writes logits of the model's tokens."""
    tokens = out.with_suffix(".json")
    tokens.write_text(str([model.tokens]))
    command = ["logits", str(model.folder), "--tokens", str(tokens), "--out", str(out)]
    options = ["--numerics", "exact", "--chunk", "40", "--decode", "12", "--expert-memory", memory]
    return subprocess.Popen([sys.executable, "-m", "dsv4_mlx", *command, *options], stderr=subprocess.DEVNULL)


def test_two_processes_on_one_model_and_one_that_was_killed(model: Model, tmp_path: Path) -> None:
    before = digests(model.folder)
    killed = run(model, tmp_path / "killed.npz")
    time.sleep(0.7)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    both = [run(model, tmp_path / f"{i}.npz", memory) for i, memory in enumerate(("1x", "7x"))]
    assert [process.wait() for process in both] == [0, 0]
    for i in range(2):
        assert np.array_equal(np.load(tmp_path / f"{i}.npz")["0"], model.logits)
    assert digests(model.folder) == before


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
