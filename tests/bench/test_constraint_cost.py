"""A constraint takes no more of a token's time than was promised, at the official vocabulary's size."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import constraint_cost
from dsv4_mlx.synthetic.tokenizer import tokenizer_json


def test_half_a_millisecond_per_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constraint_cost, "TOKENS", 80)
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(constraint_cost.VOCABULARY), encoding="utf-8")
    found = constraint_cost.measured(tmp_path)
    assert found["rules"].keys() == constraint_cost.RULES.keys()
    for name, figures in found["rules"].items():
        assert 0 < figures["median_ms"] <= constraint_cost.ALLOWED, name
