"""What long work says of itself where stderr is no terminal."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dsv4_mlx.cli import console


def test_lines_say_how_long_it_will_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = (100.0, *(now for now in (101.0, 106.0, 107.0, 200.0, 300.0) for _ in range(2)))
    monkeypatch.setattr(console, "time", SimpleNamespace(monotonic=iter(looks).__next__))
    with console.progress("work", "tokens") as show:
        for done in (1, 60, 70, 1000, 4000):
            show(done, 4000)
    assert capsys.readouterr().err.splitlines() == [
        "work: 60 of 4000 tokens, 11.8/s, 5 min 34 s left",
        "work: 1000 of 4000 tokens, 10.0/s, 5 min 00 s left",
        "work: 4000 of 4000 tokens, 30.0/s",
    ]
