"""The numpy model against transformers, and proof that the goldens notice wrong models."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compare import CHAOTIC, ORACLE, assert_close, assert_logits, assert_official
from numpy.typing import NDArray

from oracle import goldens
from oracle.cases import CASES, MIN_MARGIN, TOPK, Case
from oracle.conftest import Library
from oracle.find_prompts import Noisy
from oracle.mutations import MUTATIONS, Mutation
from oracle.numpy_model import NumpyModel
from oracle.quantisers import hadamard, q4, q8

Array = NDArray[Any]
NAMES = [case.name for case in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_numpy_model_agrees_with_transformers(library: Library, name: str) -> None:
    model = library[name].model()
    for prompt in library[name].golden.prompts:
        assert_logits(model.logits(prompt.tokens), prompt, tolerance=ORACLE)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_goldens_notice(library: Library, mutation: Mutation) -> None:
    case = library[mutation.case]
    prompt = case.golden.prompts[0]
    logits = mutation.build(case.golden.config, case.weights).logits(prompt.tokens)
    with pytest.raises(AssertionError, match="differ by more than 0.0001 std"):
        assert_logits(logits, prompt)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_manifest_describes_the_cases(case: Case) -> None:
    entry = goldens.manifest()["cases"][case.name]
    found = {
        "config": entry["config"],
        "seed": entry["seed"],
        "purpose": entry["purpose"],
        "prompts": [{key: prompt[key] for key in ("length", "split", "seed")} for prompt in entry["prompts"]],
    }
    expected = asdict(case) | {"prompts": [asdict(prompt) for prompt in case.prompts]}
    del expected["name"], expected["official"]
    if found != expected:
        raise goldens.StaleGolden(f"oracle/cases.py and the manifest disagree on {case.name!r}")


def test_goldens_are_fit_to_judge() -> None:
    manifest = goldens.manifest()
    assert list(manifest["cases"]) == NAMES
    assert sum(path.stat().st_size for path in goldens.FOLDER.iterdir()) <= goldens.SIZE_LIMIT
    for name, entry in manifest["cases"].items():
        assert set(entry["config"]["compress_ratios"]) == {0, 4, 128}
        assert 0 < entry["config"]["num_hash_layers"] < entry["config"]["num_hidden_layers"]
        assert entry["config"]["index_n_heads"] >= 12  # fewer: rectified scores tie at zero
        assert entry["prompts"][0]["clamped_share"] > 0
        for prompt in entry["prompts"]:
            margins = [m for m in (prompt["index_margin"], prompt["router_margin"]) if m is not None]
            assert min(margins) >= MIN_MARGIN, f"{name} has a near tie"
    assert manifest["cases"]["topk"]["prompts"][0]["index_selections"] > 500
    assert manifest["cases"]["windows"]["prompts"][0]["length"] // 128 >= 4


def test_stored_rows_cover_state_boundaries() -> None:
    for name in NAMES:
        for prompt in goldens.load(name).prompts:
            length = len(prompt.tokens)
            wanted = {t for t in (0, 3, 4, 127, 128, length - 1) if 0 <= t < length}
            assert wanted <= set(prompt.rows.tolist())
            assert prompt.column_logits.shape == (length, len(prompt.columns))
            assert np.isclose(prompt.std, prompt.row_logits.std(), rtol=0.2)


def test_changed_golden_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(goldens.FOLDER, folder)
    data = bytearray((folder / "topk.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "topk.npz").write_bytes(data)
    monkeypatch.setattr(goldens, "FOLDER", folder)
    with pytest.raises(goldens.StaleGolden, match=r"topk.npz(.|\n)*oracle.make_goldens"):
        goldens.load("topk")


def test_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    golden = goldens.load("windows")
    other = goldens.Golden(golden.name, golden.config, golden.seed + 1, golden.checkpoint_sha256, ())
    with pytest.raises(goldens.StaleGolden, match=r"no longer writes(.|\n)*oracle.make_goldens"):
        goldens.checkpoint(other, tmp_path)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in CHAOTIC], ids=lambda case: case.name)
def test_official_numerics_survive_float32(library: Library, case: Case) -> None:
    """What is asked of a runtime can be met: the same formulas in float32 meet it, `exact` ones don't."""
    loaded = library[case.name]
    tokens = case.official.tokens(case.config["vocab_size"])
    expected = loaded.model("official").logits(tokens)
    assert_official(loaded.model("official", np.float32).logits(tokens), expected)
    assert_official(Noisy(loaded.golden.config, loaded.weights).logits(tokens), expected)
    with pytest.raises(AssertionError, match="median difference"):
        assert_official(loaded.model().logits(tokens), expected)


class KnowsLength(NumpyModel):
    """Tells window rows (one per token) from compressed rows."""

    tokens = 0

    def layers(self, tokens: Sequence[int] | Array) -> Iterator[Array]:
        self.tokens = len(tokens)
        yield from super().layers(tokens)


class NoWindowRounding(KnowsLength):
    def stored_row(self, rows: Array) -> Array:
        return rows if len(rows) == self.tokens else super().stored_row(rows)


class NoPooledRounding(KnowsLength):
    def stored_row(self, rows: Array) -> Array:
        return rows if len(rows) != self.tokens else super().stored_row(rows)


class RotatedChannelsRounded(NumpyModel):
    def stored_row(self, rows: Array) -> Array:
        split = self.config["head_dim"] - self.config["qk_rope_head_dim"]
        rounded = q8(rows[:, split:], math.gcd(rows.shape[1] - split, 64))
        return np.concatenate([super().stored_row(rows)[:, :split], rounded], axis=-1)


class NoHadamard(NumpyModel):
    def index_form(self, x: Array) -> Array:
        return q4(x).astype(self.dtype)


class HadamardOnQueryOnly(NumpyModel):
    def index_form(self, x: Array) -> Array:
        return super().index_form(x) if x.ndim == 3 else q4(x).astype(self.dtype)


class KeysNotRounded(NumpyModel):
    def index_form(self, x: Array) -> Array:
        return super().index_form(x) if x.ndim == 3 else hadamard(x).astype(self.dtype)


@pytest.mark.parametrize(
    "wrong",
    [
        NoWindowRounding,
        NoPooledRounding,
        RotatedChannelsRounded,
        NoHadamard,
        HadamardOnQueryOnly,
        KeysNotRounded,
    ],
)
def test_official_comparison_notices(library: Library, wrong: type[NumpyModel]) -> None:
    case = library["topk"]
    tokens = TOPK.official.tokens(TOPK.config["vocab_size"])
    expected = case.model("official").logits(tokens)
    with pytest.raises(AssertionError, match="median difference"):
        assert_official(wrong(case.golden.config, case.weights, "official").logits(tokens), expected)


def test_layers_are_the_parts_of_streams(library: Library) -> None:
    case = library["windows"]
    tokens = case.golden.prompts[0].tokens[:140]
    model = case.model()
    states = list(model.layers(tokens))
    assert len(states) == case.golden.config["num_hidden_layers"] + 1
    again = model.block(states[1], tokens, "layers.1", case.golden.config["compress_ratios"][1])
    assert np.array_equal(again, states[2])
    assert np.array_equal(model.streams(tokens), states[-1])


def test_mtp_block_is_a_layer_over_mixed_inputs(library: Library) -> None:
    """A one-layer model whose embedding table holds the mixed inputs must give the same logits."""
    case = library["topk"]
    config, weights, model = case.golden.config, case.weights, case.model()
    ids = case.golden.prompts[0].tokens[:40]
    stream = model.streams(ids[:-1])[:, 0]
    following = ids[1:]

    def normed(x: Array, name: str) -> Array:
        x = x.astype(np.float64)
        return np.asarray(
            x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weights[f"mtp.0.{name}.weight"]
        )

    token = normed(weights["embed.weight"][following], "enorm") @ weights["mtp.0.e_proj.weight"].T
    hidden = normed(stream, "hnorm") @ weights["mtp.0.h_proj.weight"].T
    alone = {name.replace("mtp.0.", "layers.0."): weights[name] for name in weights if "mtp.0." in name}
    for part in ("norm.weight", "hc_head_fn", "hc_head_base", "hc_head_scale"):
        alone[part] = alone.pop(f"layers.0.{part}")
    alone |= {"embed.weight": token + hidden, "head.weight": weights["head.weight"]}
    single = NumpyModel({**config, "num_hidden_layers": 1, "compress_ratios": [0]}, alone)
    streams = np.repeat(stream[:, None], config["hc_mult"], axis=1)
    assert_close(model.mtp_logits(streams, following), single.logits(np.arange(39)), 1e-9)


def test_every_mtp_tensor_matters(library: Library) -> None:
    case = library["topk"]
    ids = case.golden.prompts[0].tokens[:30]
    streams = case.model().streams(ids[:-1])
    reference = case.model().mtp_logits(streams, ids[1:])
    names = [name for name in case.weights if name.startswith("mtp.")]
    for name in [name for name in names if ".ffn.experts." not in name]:
        # The sign changes too: a factor alone is cancelled where a norm without weights follows.
        changed = case.weights | {name: case.weights[name] * np.float32(-2)}
        logits = NumpyModel(case.golden.config, changed).mtp_logits(streams, ids[1:])
        assert np.abs(logits - reference).max() > 1e-4 * reference.std(), f"{name} changes nothing"


def test_mtp_drafts_do_not_look_ahead(library: Library) -> None:
    case = library["topk"]
    ids = case.golden.prompts[0].tokens[:30]
    streams = case.model().streams(ids[:-1])
    whole = case.model().mtp_logits(streams, ids[1:])
    part = case.model().mtp_logits(streams[:20], ids[1:21])
    assert_close(part, whole[:20], 1e-12)
