"""From a stand-in for the Hub: the same bytes as from a folder, or a reason."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.constants
import pytest
from hub.conftest import QUICK, same
from hub.fake_hub import REPOSITORY, Asked, Hub, serving

from dsv4_mlx.cli.main import run
from dsv4_mlx.errors import Dsv4Error, InputError, MachineError
from dsv4_mlx.hub.download import convert_from_hub, download, source_folder
from dsv4_mlx.hub.remote import Retry

SHARD = "model-00003-of-00006.safetensors"


def large(asked: Asked) -> bool:
    return asked.name.endswith(".safetensors") and asked.method == "GET"


def test_a_download_is_the_repository(official: Path, tmp_path: Path) -> None:
    for redirect in (False, True):
        folder = tmp_path / str(redirect)
        with serving(Hub(official, redirect=redirect)) as hub:
            download(REPOSITORY, folder, endpoint=hub.endpoint, retry=QUICK)
            assert same(official, folder)
            hub.gets.clear()
            download(REPOSITORY, folder, endpoint=hub.endpoint, retry=QUICK)
            assert not [name for name in hub.gets if name.endswith(".safetensors")]


@pytest.mark.parametrize("delete", [False, True])
def test_a_conversion_is_that_of_the_folder(
    official: Path, converted: Path, tmp_path: Path, delete: bool
) -> None:
    target = tmp_path / "out"
    with serving(Hub(official, redirect=delete)) as hub:
        summary = convert_from_hub(REPOSITORY, target, delete=delete, endpoint=hub.endpoint, retry=QUICK)
        assert summary.status == "converted" and same(target, converted)
        assert source_folder(target).exists() != delete
        if not delete:
            assert same(source_folder(target), official)
        again = convert_from_hub(
            REPOSITORY, target, delete=delete, resume=True, endpoint=hub.endpoint, retry=QUICK
        )
        assert again.status == "nothing to do" and source_folder(target).exists() != delete


def dropped(asked: Asked) -> None:
    if large(asked) and asked.number % 3 and len(asked.body) > 5000:
        asked.cut = len(asked.body) * 2 // 3


def short(asked: Asked) -> None:
    """An answer that is complete, and not of the length it should have."""
    if large(asked) and asked.number % 2 and len(asked.body) > 5000:
        asked.body = asked.body[: len(asked.body) // 2]


def busy(asked: Asked) -> None:
    if large(asked) and asked.number % 3 != 0:
        asked.status, asked.body, asked.headers = [429, 503, 500, 502][asked.number % 4], b"", {}
        asked.headers["Retry-After"] = "0"


def flipped(asked: Asked) -> None:
    """A byte of a shard is wrong when it comes for the first time."""
    if asked.name == SHARD and asked.method == "GET" and len(asked.body) > 100_000 and not flipped.done:  # type: ignore[attr-defined]
        flipped.done = True  # type: ignore[attr-defined]
        body = bytearray(asked.body)
        body[-100] ^= 1
        asked.body = bytes(body)


def whole_only(asked: Asked) -> None:
    """A server that knows no parts."""
    if large(asked) and asked.status == 206:
        asked.status, asked.start = 200, 0
        asked.headers.pop("Content-Range")
        asked.body = whole_only.files[asked.name]  # type: ignore[attr-defined]


def other_tag(asked: Asked) -> None:
    """The ETag changes between requests, the bytes don't."""
    if asked.name.endswith(".safetensors"):
        asked.headers["ETag"] = asked.headers["X-Linked-Etag"] = f'"{random.Random(asked.number).random()}"'


@pytest.mark.parametrize("fault", [dropped, short, busy, flipped, whole_only, other_tag])
@pytest.mark.parametrize("redirect", [False, True])
def test_bad_days_end_well(
    official: Path, converted: Path, tmp_path: Path, fault: Callable[[Asked], None], redirect: bool
) -> None:
    hub = Hub(official, redirect=redirect, fault=fault)
    fault.done, fault.files = False, hub.files  # type: ignore[attr-defined]
    with serving(hub):
        convert_from_hub(REPOSITORY, tmp_path / "out", delete=True, endpoint=hub.endpoint, retry=QUICK)
    assert same(tmp_path / "out", converted)
    assert fault is not flipped or flipped.done  # type: ignore[attr-defined]


def refused(hub: Hub, tmp_path: Path, **options: Any) -> Dsv4Error:
    with serving(hub), pytest.raises(Dsv4Error) as raised:
        convert_from_hub(REPOSITORY, tmp_path / "out", endpoint=hub.endpoint, retry=QUICK, **options)
    assert not list((tmp_path / "out").glob("manifest.json")) if (tmp_path / "out").exists() else True
    return raised.value


def test_a_wrong_digest_stops_it(official: Path, tmp_path: Path) -> None:
    hub = Hub(official)
    hub.listed[SHARD] = "0" * 64
    error = refused(hub, tmp_path)
    assert isinstance(error, InputError) and "came twice with another digest" in str(error)


def test_a_wrong_length_stops_it(official: Path, tmp_path: Path) -> None:
    def cut(asked: Asked) -> None:
        end = asked.start + len(asked.body)
        if asked.name == SHARD and large(asked) and end == len(hub.files[SHARD]):
            asked.body = asked.body[:-7]

    hub = Hub(official, fault=cut)
    error = refused(hub, tmp_path)
    assert isinstance(error, (MachineError, InputError)) and SHARD in str(error)


def answering(status: int, code: str = "") -> Callable[[Asked], None]:
    def fault(asked: Asked) -> None:
        if asked.name == SHARD:
            asked.status, asked.body = status, b""
            asked.headers = {"X-Error-Code": code} if code else {}

    return fault


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (answering(500), MachineError, "the Hub answers 500"),
        (answering(429), MachineError, "429"),
        (answering(404, "EntryNotFound"), InputError, "is not on the Hub"),
        (answering(401), InputError, "hf auth login"),
        (answering(403), InputError, "hf auth login"),
        (answering(403, "GatedRepo"), InputError, "hf auth login"),
    ],
)
def test_what_does_not_pass_is_said(
    official: Path, tmp_path: Path, fault: Callable[[Asked], None], kind: type[Dsv4Error], words: str
) -> None:
    error = refused(Hub(official, fault=fault), tmp_path)
    assert isinstance(error, kind) and words in str(error) and error.next


def test_another_repository_or_no_hub_is_said(official: Path, tmp_path: Path) -> None:
    with serving(Hub(official)) as hub, pytest.raises(InputError, match="no such model"):
        download("deepseek-ai/None", tmp_path / "a", endpoint=hub.endpoint, retry=QUICK)
    for name in ("a/b/c", "", "-x", "../..", "a b"):
        with pytest.raises(InputError, match="no such model"):
            download(name, tmp_path / "a", retry=QUICK)
    said: list[str] = []
    with pytest.raises(MachineError, match="can't be fetched") as raised:
        retry = replace(QUICK, tell=said.append)
        download(REPOSITORY, tmp_path / "a", endpoint="http://127.0.0.1:9", retry=retry)
    assert len(said) == QUICK.unreached - 1 and all("trying again in" in line for line in said)
    assert all(word in str(raised.value) for word in ("proxy", "HF_ENDPOINT", "HF_HUB_OFFLINE"))
    assert sum(Retry()._pause(failures) for failures in range(1, Retry().unreached)) <= 5  # seconds
    assert not (tmp_path / "a").exists()


def test_what_is_no_checkpoint_of_ours_is_refused_before_a_shard_comes(
    official: Path, tmp_path: Path
) -> None:
    hub = Hub(official)
    config = hub.files["config.json"].replace(b'"deepseek_v4"', b'"llama"')
    hub.files["config.json"], hub.sizes["config.json"] = config, len(config)
    assert "llama" in str(refused(hub, tmp_path))
    assert sum(hub.sent.get(name, 0) for name in hub.files if name.endswith(".safetensors")) < 3_000_000
    hub = Hub(official)
    hub.files["model-Q4.gguf"], hub.sizes["model-Q4.gguf"] = b"GGUF", 4
    hub.listed["model-Q4.gguf"] = "0" * 64
    assert "GGUF" in str(refused(hub, tmp_path))


def test_the_disk_never_holds_more_than_the_output_and_two_shards(
    official: Path, converted: Path, tmp_path: Path
) -> None:
    target, most = tmp_path / "out", 0

    def look(*_: object) -> None:
        nonlocal most
        found = 0
        for path in tmp_path.rglob("*"):
            try:
                found += path.stat().st_size if path.is_file() and path.suffix != ".sample" else 0
            except OSError:
                continue
        most = max(most, found)

    with serving(Hub(official)) as hub:
        convert_from_hub(REPOSITORY, target, delete=True, endpoint=hub.endpoint, retry=QUICK, progress=look)
    output = sum(path.stat().st_size for path in converted.iterdir())
    shards = sorted(path.stat().st_size for path in official.glob("*.safetensors"))
    texts = sum(p.stat().st_size for p in official.iterdir() if p.suffix == ".json")
    headers = (
        300_000  # kept to go on with; 64 samples of 4 KiB a shard, not counted, are most of these small ones
    )
    assert output < most <= output + sum(shards[-2:]) + texts + headers
    assert most < output + sum(shards) - shards[-3]


def test_other_models_are_refused_by_name_before_a_shard_comes(official: Path, tmp_path: Path) -> None:
    for kind, words in (("deepseek_v41", "V4.1"), ("deepseek_v32", "V3.2"), ("deepseek_v3", "V3 or R1")):
        hub = Hub(official)
        config = json.loads(hub.files["config.json"]) | {"model_type": kind}
        hub.files["config.json"] = json.dumps(config).encode()
        hub.sizes["config.json"] = len(hub.files["config.json"])
        error = refused(hub, tmp_path / kind)
        assert isinstance(error, InputError) and words in str(error) and "mlx-lm" in str(error.next)
        assert not any(name.endswith(".safetensors") for name in hub.gets)


@pytest.mark.parametrize("name", ["../evil.safetensors", "/tmp/evil.safetensors", "a/../../evil.json"])
def test_names_that_leave_the_folder_are_refused(official: Path, tmp_path: Path, name: str) -> None:
    hub = Hub(official)
    hub.files[name], hub.sizes[name], hub.listed[name] = b"x", 1, "0" * 64
    assert "would leave the folder" in str(refused(hub, tmp_path / "deep" / "er"))
    assert not list(tmp_path.rglob("evil*"))


def test_too_little_room_is_said_before_anything_large_comes(
    official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsv4_mlx.convert.folder.free_bytes", lambda place: 100_000)
    hub = Hub(official)
    error = refused(hub, tmp_path)
    assert isinstance(error, MachineError) and "are missing" in str(error)


def test_the_command_line(
    official: Path, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    target = str(tmp_path / "out")
    with serving(Hub(official)) as hub:
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert run(["download", REPOSITORY, str(tmp_path / "files")]) == 0, capsys.readouterr().err
        assert same(tmp_path / "files", official)
        assert run(["convert", REPOSITORY, target, "--delete-source", "--verify"]) == 2
        assert run(["convert", REPOSITORY, target, "--delete-source"]) == 0, capsys.readouterr().err
        assert run(["convert", REPOSITORY, target]) == 2
    assert same(tmp_path / "out", converted)
    assert run(["convert", str(official), target, "--delete-source"]) == 2
    assert "for a checkpoint from the Hub" in capsys.readouterr().err
