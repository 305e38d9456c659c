"""Write a checkpoint in the official layout: shards, index, config, tokenizer."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsv4_mlx.checkpoint.inventory import ITEM_BYTES, Tensor, Weight, inventory
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.errors import InputError, MachineError, Progress
from dsv4_mlx.synthetic.tokenizer import tokenizer_json
from dsv4_mlx.synthetic.values import Bytes, tensor_bytes

INDEX = "model.safetensors.index.json"
# Serialisation order of the safetensors library: widest types first, then by name.
DTYPE_ORDER = ("I64", "F32", "BF16", "F8_E8M0", "F8_E4M3", "I8")
GENERATION = {"bos_token_id": 0, "eos_token_id": 1, "do_sample": True, "temperature": 1.0, "top_p": 1.0}


@dataclass(frozen=True)
class Hole:
    """Bytes of a tensor that are zero and take no disk."""

    size: int


Values = Callable[[Weight, Tensor], Iterator[Bytes | Hole]]


def write_checkpoint(
    out: Path, config: dict[str, Any], seed: int = 0, *, progress: Progress | None = None
) -> ModelConfig:
    """Write a random checkpoint with this official config to the new or empty folder `out`.

    Every tensor depends on `seed` and its name only. Memory is bounded by one block of values whatever the
    size. `progress(done, total)` counts bytes. The index is written last.
    Raises InputError for an unusable config or a folder that is not empty, MachineError if writing fails.
    """
    model = parse_config(json.dumps(config), "the given config")

    def values(weight: Weight, tensor: Tensor) -> Iterator[Bytes]:
        return tensor_bytes(model, weight, tensor, seed)

    return write_official(out, config, tokenizer_json(model.vocab_size), values, progress=progress)


def write_official(
    out: Path, config: dict[str, Any], tokenizer: str, values: Values, *, progress: Progress | None = None
) -> ModelConfig:
    """As `write_checkpoint`, with the text of tokenizer.json and every tensor's bytes from the caller."""
    model = parse_config(json.dumps(config), "the given config")
    shards = inventory(model).shards()
    total = sum(tensor.bytes for shard in shards for weight in shard for tensor in weight.tensors())
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    make_empty(out)
    with writing(out):
        (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (out / "generation_config.json").write_text(json.dumps(GENERATION, indent=2) + "\n", encoding="utf-8")
        (out / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        where: dict[str, str] = {}
        for number, shard in enumerate(shards, 1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            for weight in shard:
                where |= {tensor.name: name for tensor in weight.tensors()}
            _write_shard(out / name, shard, values, advance)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return model


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raises MachineError where the block raises OSError."""
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"the checkpoint can't be written: {error.strerror or error}",
            where=out,
            next="free some space or choose another folder, and delete the unfinished one",
        ) from None


def make_empty(out: Path) -> None:
    """Make the folder. Raises InputError if it is there with something in it, or can't be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        occupied = any(out.iterdir())
    except OSError as error:
        raise InputError(f"the folder can't be used: {error.strerror or error}", where=out) from None
    if occupied:
        raise InputError("the folder is not empty", where=out, next="give a new or empty folder")


def _write_shard(path: Path, shard: list[Weight], values: Values, advance: Callable[[int], None]) -> None:
    entries = [(weight, tensor) for weight in shard for tensor in weight.tensors()]
    entries.sort(key=lambda entry: (DTYPE_ORDER.index(entry[1].dtypes[0]), entry[1].name))
    with path.open("wb") as file:
        file.write(_header([tensor for _, tensor in entries]))
        for weight, tensor in entries:
            for block in values(weight, tensor):
                if isinstance(block, Hole):
                    file.seek(block.size, os.SEEK_CUR)
                else:
                    file.write(block.data)
                advance(block.size)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())


def _header(tensors: list[Tensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + math.prod(tensor.shape) * ITEM_BYTES[tensor.dtypes[0]]
        header[tensor.name] = {
            "dtype": tensor.dtypes[0],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
