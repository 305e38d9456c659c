"""Synthetic checkpoints: the official layout, reproducible, alive."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import deepseek_recipe
import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.config import CSA, HCA, WINDOW, ModelConfig, parse_config
from dsv4_mlx.errors import InputError, UsageError
from dsv4_mlx.synthetic import cut, release_config, small_config, write_checkpoint
from dsv4_mlx.synthetic.__main__ import main
from dsv4_mlx.synthetic.tokenizer import MARKERS


def parsed(config: dict[str, Any]) -> ModelConfig:
    return parse_config(json.dumps(config), "test")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "small"
    started = time.monotonic()
    write_checkpoint(folder, small_config())
    assert time.monotonic() - started < 10
    return folder


def raw(folder: Path) -> dict[str, tuple[str, list[int], bytes]]:
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__")
        for name, entry in header.items():
            assert name not in found
            first, last = entry["data_offsets"]
            found[name] = (entry["dtype"], entry["shape"], data[8 + length + first : 8 + length + last])
    return found


def test_published_totals() -> None:
    """The table reproduces the published counts: tensors, bytes, tensors of the blocks after the trunk."""
    flash = list(inventory(parsed(release_config("flash", true_size=True))).tensors())
    assert len(flash) == 69_187
    assert sum(tensor.bytes for tensor in flash) == 159_609_485_896
    assert sum(tensor.name.startswith("mtp.0.") for tensor in flash) == 1575
    drafter = [t.name for t in inventory(parsed(release_config("0731", true_size=True))).tensors()]
    counts = [sum(name.startswith(f"mtp.{block}.") for name in drafter) for block in range(3)]
    assert counts == [1568, 1565, 1572]
    layer = [t for t in flash if t.name.startswith("layers.2.")]
    kinds: dict[str, int] = {}
    for tensor in layer:
        kinds[tensor.dtypes[0]] = kinds.get(tensor.dtypes[0], 0) + 1
    assert kinds == {"F32": 9, "BF16": 12, "F8_E4M3": 9, "F8_E8M0": 777, "I8": 768, "I64": 1}
    assert len(inventory(parsed(release_config("flash", true_size=True))).shards()) == 46


def test_small_is_small_and_has_everything(small: Path) -> None:
    assert sum(path.stat().st_size for path in small.iterdir()) < 15e6
    config = ModelConfig.read(small)
    assert set(config.kinds) == {WINDOW, CSA, HCA}
    assert 0 < config.hash_layers < config.layers and config.extra_blocks == 1
    assert config.index_heads >= 16 and config.index_topk < 100 // 4
    tensors = raw(small)
    index = json.loads((small / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in tensors.values())
    expected = {t.name: (t.dtypes[0], list(t.shape)) for t in inventory(config).tensors()}
    assert {name: (kind, shape) for name, (kind, shape, _) in tensors.items()} == expected
    shards = sorted(small.glob("*.safetensors"))
    assert [path.name for path in shards] == [f"model-{i:05d}-of-00010.safetensors" for i in range(1, 11)]
    with safe_open(shards[0], "np") as file:
        assert list(file.keys()) == ["embed.weight"]


def test_values_are_sane(small: Path) -> None:
    tensors = raw(small)
    for name, (kind, _, data) in tensors.items():
        values = np.frombuffer(data, dtype=np.uint8)
        if kind == "F8_E8M0":
            assert values.max() < 140 and values.min() > 100, name
            assert len(set(data)) > 1 or len(data) < 8, name
        if kind == "F8_E4M3":
            assert not np.isin(values & 0x7F, 0x7F).any(), name
        if kind == "F32":
            floats = np.frombuffer(data, dtype=np.float32)
            assert np.isfinite(floats).all() and (floats != 0).all(), name
    codes = np.frombuffer(tensors["layers.3.ffn.experts.1.w1.weight"][2], dtype=np.uint8)
    assert set(codes & 15) == set(codes >> 4) == set(range(16))


def test_hash_tables_hold_distinct_experts(tmp_path: Path) -> None:
    config = cut(small_config(), layers=1, experts=7) | {"num_experts_per_tok": 6, "vocab_size": 4000}
    write_checkpoint(tmp_path / "x", config)
    stored = raw(tmp_path / "x")["layers.0.ffn.gate.tid2eid"][2]
    table = np.frombuffer(stored, dtype=np.int64).reshape(4000, 6)
    assert table.min() == 0 and table.max() == 6
    assert all(len(set(row)) == 6 for row in table.tolist())
    assert np.bincount(table.ravel()).std() / (4000 * 6 / 7) < 0.05
    assert len({tuple(row) for row in table.tolist()}) > 2000


def test_deterministic_by_seed_and_name(small: Path, tmp_path: Path) -> None:
    """Neither the number of layers nor that of experts changes a tensor."""
    write_checkpoint(tmp_path / "same", small_config())
    write_checkpoint(tmp_path / "fewer", cut(small_config(), layers=3, experts=4))
    write_checkpoint(tmp_path / "other", small_config(), seed=1)
    here = raw(small)
    assert raw(tmp_path / "same") == here
    fewer, other = raw(tmp_path / "fewer"), raw(tmp_path / "other")
    shared = [name for name in fewer if "gate" not in name]
    assert len(shared) > 150 and all(fewer[name] == here[name] for name in shared)
    equal = [name for name in here if here[name][2] == other[name][2]]
    assert all(len(here[name][2]) < 16 for name in equal), "only a few scale bytes may agree by chance"
    assert other.keys() == here.keys()


PINNED = "0bc01b1a81a2f67d673055ad540df84be3c6382cba9093a054a17eb1696edce0"


def test_bytes_are_pinned(small: Path) -> None:
    """A changed digest changes every golden that was made from synthetic weights."""
    digest = hashlib.sha256()
    for name, (_, _, data) in sorted(raw(small).items()):
        digest.update(name.encode() + data)
    assert digest.hexdigest() == PINNED


def test_memory_is_bounded(tmp_path: Path) -> None:
    config = cut(small_config(), layers=1, experts=8) | {"vocab_size": 60_000, "hidden_size": 512}
    write_checkpoint(tmp_path / "warm", small_config())
    tracemalloc.start()
    try:
        write_checkpoint(tmp_path / "large", config)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    written = sum(path.stat().st_size for path in (tmp_path / "large").iterdir())
    assert written > 120e6 and peak < 60e6, f"{peak / 1e6:.0f} MB for {written / 1e6:.0f} MB"


# --- releases ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("release", ["flash", "pro", "0731"])
@pytest.mark.parametrize("true_size", [False, True])
def test_releases_parse(release: Any, true_size: bool) -> None:
    config = parsed(release_config(release, true_size=true_size))
    pattern = {
        "flash": (43, (WINDOW, WINDOW, CSA), "april"),
        "pro": (61, (HCA, HCA, CSA), "april"),
        "0731": (43, (WINDOW, WINDOW, CSA), "0731"),
    }[release]
    assert (config.layers, config.kinds[:3], config.checkpoint) == pattern
    assert config.kinds[-1] == CSA and config.hash_layers == 3
    assert (config.hidden_size > 1000) == true_size
    if release == "0731":
        assert config.drafter is not None and config.extra_blocks == 3
        assert config.drafter.target_layers == (40, 41, 42)


def test_cut(tmp_path: Path) -> None:
    config = cut(release_config("0731"), layers=5, experts=6)
    model = write_checkpoint(tmp_path / "x", config)
    assert (model.layers, model.experts, model.kinds) == (5, 6, (WINDOW, WINDOW, CSA, HCA, CSA))
    assert model.drafter is not None and model.drafter.target_layers == (2, 3, 4)
    with pytest.raises(UsageError, match="expected 1 to 43"):
        cut(config | {"num_hidden_layers": 43}, layers=44)
    with pytest.raises(UsageError, match="expected at least 3"):
        cut(config, experts=2)


# --- tokenizer --------------------------------------------------------------------------------------------


def test_tokenizer(small: Path) -> None:
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 640
    assert all(tokenizer.id_to_token(i) for i in range(640))
    ids = [
        tokenizer.token_to_id(t) for t in ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>")
    ]
    assert ids == [0, 1, 2]
    for marker in MARKERS:
        assert tokenizer.encode(marker, add_special_tokens=False).ids == [tokenizer.token_to_id(marker)]
    text = "Hello, naïve wörld! 1234567 世界テスト\n\n  if x_1 >= 2: 🙂\tend"
    encoded = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == text
    assert max(encoded.ids) < (tokenizer.token_to_id(MARKERS[0]) or 0)


def test_tokenizer_splits_as_the_official_one(small: Path) -> None:
    tokenizer = Tokenizer.from_file(str(small / "tokenizer.json"))

    def pieces(text: str) -> list[str]:
        return [text[first:last] for _, (first, last) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]

    assert pieces("1234567") == ["123", "456", "7"]
    assert pieces("in the end") == ["in", " the", " end"]
    assert pieces("a世界b") == ["a", "世界", "b"]
    assert pieces("x  \n\n y") == ["x", "  \n\n", " y"]
    assert pieces("(call)") == ["(call", ")"]
    assert pieces("ok!?\n") == ["ok", "!?\n"]


def test_tokenizer_loads_in_the_vendors_library(small: Path) -> None:
    tokenizer = deepseek_recipe.Tokenizer.from_file(str(small / "tokenizer.json"))
    assert deepseek_recipe.DeepseekV4Encoding().with_tokenizer(tokenizer) is not None


def test_tokenizer_of_the_true_vocabulary() -> None:
    from dsv4_mlx.synthetic.tokenizer import tokenizer_json

    assert Tokenizer.from_str(tokenizer_json(129_280)).get_vocab_size() == 129_280
    with pytest.raises(InputError, match="needs 3"):
        tokenizer_json(300)
    with pytest.raises(InputError, match="no more than"):
        tokenizer_json(10**6)


# --- command ----------------------------------------------------------------------------------------------


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    assert main([str(out), "--like", "pro", "--layers", "3", "--experts", "4", "--seed", "5"]) == 0
    assert "3 layers, 4 experts" in capsys.readouterr().out
    again = tmp_path / "y"
    assert main([str(again), "--config", str(out / "config.json"), "--seed", "5"]) == 0
    assert raw(out) == raw(again)
    assert (out / "config.json").read_text() == (again / "config.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--true-size"], "--true-size needs --like"),
        (["--layers", "99"], "--layers is 99, expected 1 to 7"),
        (["--experts", "1"], "--experts is 1, expected at least 2"),
        (["--config", "nowhere.json"], "the config can't be read"),
    ],
)
def test_command_refuses(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "x"), *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ") and not (tmp_path / "x").exists()
    assert main([str(tmp_path / "x"), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_command_refuses_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main([str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([str(tmp_path / "file")]) == 2
    assert "can't be used" in capsys.readouterr().err


def test_help_has_an_example() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsv4_mlx.synthetic", "--help"], capture_output=True, text=True, check=True
    )
    assert "python -m dsv4_mlx.synthetic /tmp/small" in done.stdout


def test_misspelt_options_are_refused_like_everything_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "x"), "--like", "flush"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and "--help" in err and not (tmp_path / "x").exists()
