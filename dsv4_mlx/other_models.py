"""Models that look as if they could run here and can't: named, with what to use instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsv4_mlx.errors import InputError

OURS = "deepseek_v4"
OFFICIAL = "for this program: the official deepseek-ai/DeepSeek-V4-Flash"

# model_type -> what people call it, what runs it
OTHERS = {
    "deepseek_v41": ("DeepSeek V4.1, another architecture than V4", "mlx-lm"),
    "deepseek_v32": ("DeepSeek V3.2", "mlx-lm"),
    "deepseek_v3": ("DeepSeek V3 or R1", "mlx-lm"),
    "deepseek_v2": ("DeepSeek V2", "mlx-lm"),
}


def unsupported_model(raw: Mapping[str, Any], where: object) -> InputError | None:
    """The refusal of a config.json that is another model's; None for one of ours, or one that doesn't say."""
    kind = _kind(raw)
    if kind in (None, OURS):
        if "quantization" in raw and "group_size" in str(raw["quantization"]):
            return InputError(
                "this is DeepSeek V4 as another MLX program converted it",
                where=where,
                next=f"run it with that program; {OFFICIAL}, and `dsv4-mlx convert`",
            )
        return None
    name, runs = OTHERS.get(kind, ("", "")) if isinstance(kind, str) else ("", "")
    what = f", which is {name}" if name else ""
    instead = f"run it with {runs}; " if runs else ""
    return InputError(
        f"model_type is {kind!r}{what}; expected {OURS!r}: this program runs DeepSeek V4 only",
        where=where,
        next=instead + OFFICIAL,
    )


def _kind(raw: Mapping[str, Any]) -> object:
    """model_type; where it tells nothing known, what the name of the class tells: DeepseekV41ForCausalLM."""
    kind, classes = raw.get("model_type"), raw.get("architectures")
    if isinstance(kind, str) and kind in (OURS, *OTHERS):
        return kind
    for name in classes if isinstance(classes, list) else []:
        if isinstance(name, str):
            named = name.lower().removesuffix("forcausallm").replace("deepseekv", "deepseek_v")
            if named in OTHERS:
                return named
    return kind


def gguf(path: Path) -> InputError | None:
    """The refusal of a GGUF file, or of a folder that holds nothing else; None for anything else."""
    if path.is_dir():
        found = next(path.glob("*.gguf"), None) if not (path / "config.json").exists() else None
    else:
        found = path if path.suffix.lower() == ".gguf" else None
    if found is None:
        return None
    return InputError(
        f"{found.name} is GGUF, the format of llama.cpp",
        where=path,
        next=f"run it with llama.cpp; {OFFICIAL}",
    )
