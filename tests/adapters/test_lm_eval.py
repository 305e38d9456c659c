"""mlx_lm.evaluate under the real lm-eval, on tasks of our own: every kind of request, nothing downloaded.

lm-eval is no dependency, not even for development: install it to run this (pip install lm-eval).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from memory_run import tiny_engine

from dsv4_mlx.adapters.mlx_lm import prepared
from dsv4_mlx.engine.engine import score

pytestmark = pytest.mark.long

CHOICES = [" is that", " it depends on you"]


def task(name: str, kind: str, data: Path, **more: Any) -> dict[str, Any]:
    files = {"data_files": {"test": str(data)}}
    common = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
    return {"task": name, "output_type": kind, **common, **more}


def test_every_kind_of_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    engine = tiny_engine(tmp_path, 1024)
    rows: list[dict[str, Any]] = [
        {"q": f"the answer {i}", "label": i % 2, "text": f"the answer {i} is that it depends"}
        for i in range(6)
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    tasks = [
        task(
            "choice", "multiple_choice", data, doc_to_text="{{q}}", doc_to_choice=CHOICES,
            doc_to_target="label", metric_list=[{"metric": "acc"}],
        ),
        task(
            "rolling", "loglikelihood_rolling", data, doc_to_text="", doc_to_target="{{text}}",
            metric_list=[{"metric": "bits_per_byte"}],
        ),
        task(
            "text", "generate_until", data, doc_to_text="{{q}}", doc_to_target="{{label}}",
            generation_kwargs={"until": ["\n"], "max_gen_toks": 4}, metric_list=[{"metric": "exact_match"}],
        ),
    ]  # fmt: skip
    lm = prepared("evaluate").MLXLM(str(tmp_path / "converted"))
    found = lm_eval.simple_evaluate(model=lm, tasks=tasks, bootstrap_iters=0)["results"]

    def total(text: str, after: str = "") -> float:
        """log P(text), or of what follows `after` in it, by our own score()."""
        tokens, start = lm.tokenizer.encode(text), len(lm.tokenizer.encode(after)) - 1 if after else 0
        logits = score(engine, tokens).astype(np.float64)[:-1]
        logits -= np.log(np.exp(logits - logits.max()).sum(axis=1, keepdims=True)) + logits.max()
        return float(logits[np.arange(len(tokens) - 1), tokens[1:]][start:].sum())

    right = [
        int(np.argmax([total(row["q"] + choice, row["q"]) for choice in CHOICES])) == row["label"]
        for row in rows
    ]
    assert found["choice"]["acc,none"] == pytest.approx(np.mean(right))
    bits = -sum(total(row["text"]) for row in rows) / math.log(2)
    size = sum(len(row["text"].encode()) for row in rows)
    assert found["rolling"]["bits_per_byte,none"] == pytest.approx(bits / size, rel=1e-4)
    assert 0 <= found["text"]["exact_match,none"] <= 1
