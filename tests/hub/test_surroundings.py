"""What a user has around a download: a cache, a token, a mirror, other files, another terminal, Ctrl-C."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Event

import huggingface_hub.constants
import pytest
from hub.conftest import QUICK, same
from hub.fake_hub import REPOSITORY, Asked, Hub, serving

from dsv4_mlx.errors import InputError
from dsv4_mlx.hub import ranges
from dsv4_mlx.hub.download import DownloadStep, convert_from_hub, download, source_folder

SHARD = "model-00003-of-00006.safetensors"


@pytest.mark.parametrize("linked", [True, False])
def test_a_shard_in_the_cache_is_not_fetched_again(
    official: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    """One is right, one has other bytes than its name says; both, and a partial one, stay as they are."""
    hub, wrong = Hub(official), "model-00002-of-00006.safetensors"
    blobs = tmp_path / "cache" / "models--deepseek-ai--Tiny" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / hub.listed[SHARD]).write_bytes(hub.files[SHARD])
    (blobs / hub.listed[wrong]).write_bytes(bytes(len(hub.files[wrong])))
    (blobs / f"{'a' * 64}.incomplete").write_bytes(b"half")
    before = {path.name: path.read_bytes() for path in blobs.iterdir()}

    def refused(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Cross-device link")

    with serving(hub), monkeypatch.context() as patch:
        convert_from_hub(REPOSITORY, tmp_path / "alone", endpoint=hub.endpoint, retry=QUICK)
        alone = dict(hub.gets)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        if not linked:
            patch.setattr(os, "link", refused)
        for delete in (False, True):
            hub.gets.clear()
            target = tmp_path / f"out-{delete}"
            convert_from_hub(REPOSITORY, target, delete=delete, endpoint=hub.endpoint, retry=QUICK)
            assert same(target, converted)
            parts = -(-len(hub.files[SHARD]) // (ranges.SPAN * ranges.BLOCK))
            assert hub.gets[SHARD] == alone[SHARD] - parts  # its header and samples only
            assert hub.gets[wrong] == alone[wrong]
    assert {path.name: path.read_bytes() for path in blobs.iterdir()} == before


def test_the_token_goes_to_the_hub_alone(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serving(Hub(official, redirect=True)) as hub:
        download(REPOSITORY, tmp_path / "a", endpoint=hub.endpoint, retry=QUICK)
    assert hub.tokens == {"api": {"Bearer hf_secret"}, "files": {"Bearer hf_secret"}, "cdn": {None}}


def test_offline_is_said_at_once(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with serving(Hub(official)) as hub, pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        download(REPOSITORY, tmp_path / "a", endpoint=hub.endpoint, retry=QUICK)
    assert not hub.gets and not (tmp_path / "a").exists()


def test_a_mirror_and_the_environment(official: Path, tmp_path: Path) -> None:
    """As a user calls it: another process, HF_ENDPOINT and HF_TOKEN in its environment."""
    with serving(Hub(official)) as hub:
        environment = {
            **os.environ,
            "HF_ENDPOINT": hub.endpoint,
            "HF_TOKEN": "hf_secret",
            "HF_HUB_OFFLINE": "0",
        }
        words = [sys.executable, "-m", "dsv4_mlx", "download", REPOSITORY, str(tmp_path / "a")]
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(official, tmp_path / "a") and "Bearer hf_secret" in hub.tokens["api"]


def test_what_is_not_ours_stays(official: Path, converted: Path, tmp_path: Path) -> None:
    """--delete-source deletes what was fetched."""
    target = tmp_path / "out"
    source_folder(target).mkdir()
    (source_folder(target) / "my notes.txt").write_text("mine")
    with serving(Hub(official)) as hub:
        convert_from_hub(REPOSITORY, target, delete=True, endpoint=hub.endpoint, retry=QUICK)
    assert same(target, converted)
    assert [path.name for path in source_folder(target).iterdir()] == ["my notes.txt"]


def test_two_at_once_are_refused(official: Path, tmp_path: Path) -> None:
    seen: list[str] = []

    def again(step: DownloadStep) -> None:
        if not seen:
            with pytest.raises(InputError, match="is writing to this folder") as raised:
                download(REPOSITORY, tmp_path / "a", endpoint=hub.endpoint, retry=QUICK)
            seen.append(str(raised.value))

    with serving(Hub(official)) as hub:
        download(REPOSITORY, tmp_path / "a", endpoint=hub.endpoint, retry=QUICK, progress=again)
    assert seen and same(official, tmp_path / "a")
    assert not list((tmp_path / "a").glob(".convert*"))


@pytest.mark.parametrize("looking", [False, True])
def test_ctrl_c_ends_a_conversion_that_waits_for_the_hub(
    official: Path, tmp_path: Path, looking: bool
) -> None:
    """In a pause before the next try: with the next shard not there, or not even its header."""

    def away(asked: Asked) -> None:
        if asked.name == SHARD and asked.method == "GET" and asked.start + len(asked.body) == len(whole):
            asked.status, asked.body, asked.headers = 503, b"", {"Retry-After": "60"}

    hub = Hub(official)
    whole = hub.files[SHARD]
    with serving(hub):
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        target = tmp_path / "out"
        download(REPOSITORY, source_folder(target), endpoint=hub.endpoint, retry=QUICK)
        (source_folder(target) / SHARD).unlink()
        if looking:
            shutil.rmtree(source_folder(target))
        hub.fault = away
        words = [sys.executable, "-m", "dsv4_mlx", "convert", REPOSITORY, str(target)]
        process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        while "trying again in 60 s" not in (line := process.stderr.readline()):
            assert line, "it ended by itself"
        while not looking and not (target / "layer-00.safetensors").exists():
            Event().wait(0.05)  # time.sleep does nothing here
        Event().wait(0.7)  # by now it waits for the shard of the next layer
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in said and time.monotonic() - started < 10
