"""Other models are refused by name, with what runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dsv4_mlx.cli.main import run
from dsv4_mlx.config import parse_config
from dsv4_mlx.errors import InputError
from dsv4_mlx.synthetic import small_config


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
