"""Match a checkpoint's tensors to the official table: each used once, or one error that lists them."""

from __future__ import annotations

from dsv4_mlx.checkpoint.header import Entry
from dsv4_mlx.checkpoint.source import Source, listed
from dsv4_mlx.errors import InputError
from dsv4_mlx.official import Inventory, inventory


def match(source: Source) -> Inventory:
    """The weights of this checkpoint. Raises InputError that names what is missing, extra or misshapen."""
    table = inventory(source.config)
    found: dict[str, Entry] = dict(source.entries())
    _refuse_fp8_experts(source, found)
    missing: list[str] = []
    wrong: list[str] = []
    for tensor in table.tensors():
        entry = found.pop(tensor.name, None)
        if entry is None:
            missing.append(tensor.name)
        elif entry.shape != tensor.shape or entry.dtype not in tensor.dtypes:
            expected = f"{' or '.join(tensor.dtypes)} {list(tensor.shape)}"
            wrong.append(f"{tensor.name} is {entry.dtype} {list(entry.shape)}, expected {expected}")
    problems = []
    if missing:
        problems.append(f"missing {len(missing)}: {listed(missing)}")
    if found:
        problems.append(f"unknown {len(found)}: {listed(list(found))}")
    if wrong:
        problems.append(f"misshapen {len(wrong)}: {listed(wrong, '; ')}")
    if problems:
        raise InputError(
            "the tensors are not those that config.json describes: " + ". ".join(problems),
            where=source.folder,
            next="use config.json, index and shards of one official release",
        )
    return table


def _refuse_fp8_experts(source: Source, found: dict[str, Entry]) -> None:
    """The same model with routed experts of another format: named, not listed as thousands of shapes."""
    name = "layers.0.ffn.experts.0.w1.weight"
    if name in found and found[name].dtype == "F8_E4M3":
        raise InputError(
            "the routed experts are FP8, as in DeepSeek-V4-Flash-Base; this program runs those of FP4",
            where=source.folder / source.where[name],
            next="use deepseek-ai/DeepSeek-V4-Flash, or run this checkpoint with vLLM or SGLang",
        )
