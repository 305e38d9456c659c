"""Other models are refused by name, with what runs them."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoint.damage import edit_header, edit_json
from checkpoints import Checkpoints

from dsv4_mlx.checkpoint.match import match
from dsv4_mlx.checkpoint.source import open_source
from dsv4_mlx.cli.main import run
from dsv4_mlx.config import parse_config
from dsv4_mlx.errors import InputError
from dsv4_mlx.synthetic import small_config
from dsv4_mlx.synthetic.configs import Release, release_config


@pytest.mark.parametrize(
    ("changes", "name", "instead"),
    [
        ({"model_type": "deepseek_v41"}, "DeepSeek V4.1", "mlx-lm"),
        ({"model_type": "deepseek_v32"}, "DeepSeek V3.2", "mlx-lm"),
        ({"model_type": "deepseek_v3"}, "DeepSeek V3 or R1", "mlx-lm"),
        ({"model_type": "x", "architectures": ["DeepseekV41ForCausalLM"]}, "DeepSeek V4.1", "mlx-lm"),
        ({"model_type": None, "architectures": ["DeepseekV32ForCausalLM"]}, "DeepSeek V3.2", "mlx-lm"),
        ({"model_type": "llama"}, "'llama'", "deepseek-ai/DeepSeek-V4-Flash"),
        ({"model_type": ["x"]}, "['x']", "deepseek-ai/DeepSeek-V4-Flash"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "another MLX program", "that program"),
    ],
)
def test_named_with_what_runs_it(changes: dict[str, object], name: str, instead: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_config(json.dumps({**small_config(), **changes}), "config.json")
    assert name in raised.value.message
    assert raised.value.next is not None and instead in raised.value.next


@pytest.mark.parametrize("command", [["info"], ["convert"], ["generate", "-p", "x"]])
@pytest.mark.parametrize("folder", [False, True])
def test_gguf_is_named(
    command: list[str], folder: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model-Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    words = [command[0], str(tmp_path if folder else file), *command[1:]]
    if command == ["convert"]:
        words.append(str(tmp_path / "out"))
    assert run(words) == 2
    message = capsys.readouterr().err
    assert "is GGUF, the format of llama.cpp" in message and "DeepSeek-V4-Flash" in message


def passes(config: dict[str, Any], told: str = "") -> None:
    """Read as the official config; with `told`, one line that names these keys."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert parse_config(json.dumps(config), "here") == parse_config(json.dumps(small_config()), "here")
    lines = [str(one.message) for one in said]
    assert lines == ([f"config.json has keys without effect: {told}"] if told else [])


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"id2label": {"0": "LABEL_0"}}, "id2label"),
        ({"unsloth_fixed": True, "router_aux_loss_coef": 0.001}, "unsloth_fixed, router_aux_loss_coef"),
        ({"max_position_embeddings": 1048576.0}, ""),
        ({"use_cache": False, "_name_or_path": "x"}, ""),
        ({"mlp_bias": False}, ""),
    ],
)
def test_keys_without_effect_pass_with_one_line(more: dict[str, Any], told: str) -> None:
    passes(small_config() | more, told)


@pytest.mark.parametrize(
    "more",
    [
        {"rope_type": "yarn"},
        {"mscale": 1.0},
        {"mscale": 1.0, "mscale_all_dim": 1.0},
        {"attention_factor": 1.0},
        {"truncate": True},
    ],
)
def test_a_scaling_that_says_the_same_is_the_same(more: dict[str, Any]) -> None:
    config = small_config()
    config["rope_scaling"] |= more
    passes(config)
    if "rope_type" in more:
        del config["rope_scaling"]["type"]
        passes(config)


def test_a_quantisation_that_leaves_nothing_out_is_the_same() -> None:
    config = small_config()
    nothings: tuple[list[str] | None, ...] = (None, [])
    for nothing in nothings:
        config["quantization_config"]["modules_to_not_convert"] = nothing
        passes(config)


@pytest.mark.parametrize("release", ["flash", "base", "pro"])
def test_what_transformers_saves_is_read(release: Release) -> None:
    """Its own class, given the official config, written and read back."""
    from transformers import DeepseekV4Config

    official = release_config(release, true_size=True)
    saved = json.loads(DeepseekV4Config(**official).to_json_string(use_diff=False))
    assert "layer_types" in saved and "rope_parameters" in saved
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = parse_config(json.dumps(saved), "here")
    assert found == parse_config(json.dumps(official), "here")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"new_key": 1}, "may change the arithmetic: unknown new_key"),
        ({"layer_types": ["sliding_attention"] * 7}, "unknown layer_types"),
        ({"mlp_layer_types": ["moe"] * 7}, "unknown mlp_layer_types"),
        ({"mlp_bias": True}, "unknown mlp_bias"),
        ({"rope_scaling": {"mscale": 0.7}}, "rope_scaling is"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling is"),
        ({"quantization_config": {"modules_to_not_convert": ["head"]}}, "quantization_config is"),
        ({"max_position_embeddings": 1048576.5}, "max_position_embeddings is 1048576.5"),
        ({"rope_parameters": {"main": {"rope_type": "yarn"}, "compress": {}}}, "unknown rope_parameters"),
    ],
)
def test_what_says_something_else_is_refused(more: dict[str, Any], says: str) -> None:
    config = small_config()
    for key, value in more.items():
        old = config.get(key)
        config[key] = old | value if isinstance(old, dict) else value
    with pytest.raises(InputError, match=says):
        parse_config(json.dumps(config), "here")


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 130\n"
SHARD = "model-00002-of-00010.safetensors"


@pytest.mark.parametrize("name", [SHARD, "config.json", "tokenizer.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("text", "says"),
    [(LFS, "a pointer of Git LFS"), ("<!DOCTYPE html><p>", "a web page"), ("\n<html><p>", "a web page")],
)
def test_what_stands_in_a_file_s_place_is_named(
    name: str, text: str, says: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "official"))
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=f"{name} is {says}"):
        open_source(folder)


@pytest.mark.parametrize(
    ("dtype", "says"),
    [("F4", "w1.weight has the dtype F4: another program"), ("U8", "experts are U8: packed anew")],
)
def test_repacked_experts_are_named(dtype: str, says: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "official"))

    def change(header: dict[str, Any]) -> None:
        for name, entry in header.items():
            if ".experts." in name and name.endswith(".weight"):
                entry["dtype"] = dtype

    edit_header(folder / SHARD, change)
    with pytest.raises(InputError, match=says):
        match(open_source(folder))


@pytest.mark.parametrize("total", [123, float("inf"), "123"])
def test_a_wrong_total_is_a_line(total: object, checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.official("small"), tmp_path / "official"))
    edit_json(
        folder / "model.safetensors.index.json", lambda index: index["metadata"].update(total_size=total)
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        match(open_source(folder))
    assert ["taken for a wrong total" in str(one.message) for one in said] == [True] * (total != "123")
