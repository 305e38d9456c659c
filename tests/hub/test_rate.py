"""How fast the network is: measured in the ranges of a download, kept, and what `plan` makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hub.conftest import QUICK
from hub.fake_hub import REPOSITORY, Asked, serving
from hub.test_ranges import NAME, fetcher, hub_of

from dsv4_mlx.cli.main import run
from dsv4_mlx.hub import fetch, ranges, rate
from dsv4_mlx.hub.remote import look

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(rate, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def test_a_measurement_ends_after_its_seconds_and_keeps_no_file(tmp_path: Path) -> None:
    """Each piece takes a quarter of a second of this clock."""
    times = iter(number / 4 for number in range(10_000))
    hub = hub_of(tmp_path / "served", 300 * (1 << 16))
    hub.delay = 0.002
    with serving(hub):
        found = rate.measure(look(REPOSITORY, endpoint=hub.endpoint, retry=QUICK), lambda: next(times))
    assert 0 < hub.sent[NAME] < len(hub.files[NAME]) and rate.kept() == found > 0
    assert hub.most > 1, "in ranges, as a download"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "served"]


def test_a_server_without_ranges_is_measured_too(tmp_path: Path) -> None:
    def whole(asked: Asked) -> None:
        if asked.status == 206:
            asked.status, asked.start, asked.body = 200, 0, hub.files[NAME]

    hub = hub_of(tmp_path / "served", 40 * (1 << 16))
    hub.fault = whole
    with serving(hub):
        assert rate.measure(look(REPOSITORY, endpoint=hub.endpoint, retry=QUICK)) > 0


def test_a_download_says_how_fast_it_was_if_it_is_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = hub_of(tmp_path / "served", 20 * (1 << 16))
    hub.rate = 10e6
    with serving(hub):
        fetcher(hub, tmp_path / "a", lambda count: None).fetch(NAME)
        assert rate.kept() is None
        monkeypatch.setattr(fetch, "LEAST", ranges.BLOCK)
        fetcher(hub, tmp_path / "b", lambda count: None).fetch(NAME)
    assert 1e6 < (rate.kept() or 0) <= 11e6


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"bytes per second": "1"}', '{"bytes per second": 0}', "\0"]
)
def test_a_kept_rate_that_can_t_be_read_is_none(text: str, cache: Path) -> None:
    cache.mkdir()
    (cache / rate.NAME).write_text(text)
    assert rate.kept() is None


def test_plan_takes_its_hours_from_the_measured_rate(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """159.6 GB at 20 MB/s are 2 h 13 min."""
    arguments = ["plan", "--for", "64GB"]
    assert run(arguments) == 0 and "the download takes" not in capsys.readouterr().out
    rate.keep(20e6)
    assert run(arguments) == 0
    assert "the download takes 2 h 13 min at 20.0 MB/s" in capsys.readouterr().out

    asked: list[str] = []

    def found(repository: str, **_: Any) -> str:
        asked.append(repository)
        return repository

    monkeypatch.setattr("dsv4_mlx.hub.remote.look", found)
    monkeypatch.setattr("dsv4_mlx.hub.rate.measure", lambda remote: 40e6)
    assert run([*arguments, "--network", "measure"]) == 0
    out, err = capsys.readouterr()
    assert "the download takes 1 h 06 min at 40.0 MB/s" in out and "nothing of it is kept" in err
    assert asked == ["deepseek-ai/DeepSeek-V4-Flash"]
