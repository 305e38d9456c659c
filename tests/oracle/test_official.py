"""The oracle's reader against bytes written by hand and against one-element-at-a-time decoding."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from oracle.conftest import Library
from oracle.official import OfficialCheckpoint, decode_fp4, decode_fp8, e2m1_value, e4m3_value


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]]) -> None:
    header, offset = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def test_every_storage_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    pairs = bytes([0x21] + [0] * 14 + [0xF0])  # codes 1, 2, then zeros, then 0 and 15
    write(
        tmp_path / "a.safetensors",
        {
            "layers.0.ffn.experts.0.w1.weight": ("I8", [1, 16], pairs),
            "layers.0.ffn.experts.0.w1.scale": ("F8_E8M0", [1, 1], bytes([128])),
            "x.wq.weight": ("F8_E4M3", [1, 2], bytes([0x38, 0xC0])),
            "x.wq.scale": ("F8_E8M0", [1, 1], bytes([126])),
        },
    )
    write(
        tmp_path / "b.safetensors",
        {
            "norm.weight": ("BF16", [2], struct.pack("<HH", 0x3F80, 0xC000)),
            "sink": ("F32", [2], struct.pack("<ff", 1.5, -3.0)),
            "tid2eid": ("I64", [1, 2], struct.pack("<qq", 7, 2**40)),
        },
    )
    found = OfficialCheckpoint(tmp_path)
    assert found["layers.0.ffn.experts.0.w1.weight"].tolist() == [[1.0, 2.0, *[0.0] * 29, -12.0]]
    assert found["x.wq.weight"].tolist() == [[0.5, -1.0]]
    assert found["norm.weight"].tolist() == [1.0, -2.0]
    assert found["sink"].tolist() == [1.5, -3.0]
    assert found["tid2eid"].tolist() == [[7, 2**40]] and found["tid2eid"].dtype == np.int64
    assert len(found) == 5 and "x.wq.scale" not in found
    with pytest.raises(KeyError):
        found["x.wq.scale"]


@pytest.mark.parametrize(("rows", "columns"), [(128, 128), (129, 127), (1, 257), (160, 96), (300, 130)])
def test_fp8_blocks_of_awkward_sizes(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    codes = rng.integers(0, 127, (rows, columns)).astype(np.uint8)
    scales = rng.integers(120, 134, (-(-rows // 128), -(-columns // 128))).astype(np.uint8)
    values = decode_fp8(codes, scales)
    for row, column in [
        (0, 0),
        (rows - 1, columns - 1),
        (min(128, rows - 1), min(128, columns - 1)),
        (0, 64),
    ]:
        scale = 2.0 ** (int(scales[row // 128, column // 128]) - 127)
        assert values[row, column] == e4m3_value(int(codes[row, column])) * scale
    with pytest.raises(ValueError, match="expected"):
        decode_fp8(codes, np.zeros((rows // 128 + 2, 1), dtype=np.uint8))


def test_fp4_groups() -> None:
    rng = np.random.default_rng(4)
    pairs = rng.integers(0, 256, (3, 48)).astype(np.uint8)
    scales = rng.integers(120, 134, (3, 3)).astype(np.uint8)
    values = decode_fp4(pairs, scales)
    for row in range(3):
        for column in range(96):
            byte = int(pairs[row, column // 2])
            code = byte >> 4 if column % 2 else byte & 15
            assert values[row, column] == e2m1_value(code) * 2.0 ** (int(scales[row, column // 32]) - 127)
    with pytest.raises(ValueError, match="do not fit"):
        decode_fp4(pairs, scales[:, :2])


def test_wrong_sizes_and_doubles_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="no safetensors"):
        OfficialCheckpoint(tmp_path)
    write(tmp_path / "a.safetensors", {"x": ("F32", [2], bytes(8))})
    write(tmp_path / "b.safetensors", {"x": ("F32", [2], bytes(8))})
    with pytest.raises(ValueError, match="x is in a.safetensors and in b.safetensors"):
        OfficialCheckpoint(tmp_path)
    write(tmp_path / "b.safetensors", {"y": ("F32", [3], bytes(8))})
    with pytest.raises(ValueError, match="y has 8 bytes"):
        OfficialCheckpoint(tmp_path)


def test_synthetic_checkpoint_has_the_official_types(library: Library) -> None:
    """Every stored type occurs, no value is NaN, and weights have the spread that keeps a signal alive."""
    source = library["awkward"].checkpoint
    kinds = {entry.dtype for entry in source.entries.values()}
    assert kinds == {"F8_E4M3", "F8_E8M0", "I8", "BF16", "F32", "I64"}
    for name in source:
        assert np.isfinite(source[name]).all(), name
    wide = source["layers.0.attn.wq_b.weight"]
    assert 0.5 < wide.std() * np.sqrt(wide.shape[1]) < 2


def test_digest_depends_on_values_only(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    path = tmp_path / "a.safetensors"
    x, y, draft = ("F32", [1], bytes(4)), ("F32", [1], bytes([0, 0, 128, 63])), ("F32", [1], bytes(4))
    write(path, {"x": x, "y": y, "mtp.0.z": draft})
    first = OfficialCheckpoint(tmp_path).digest()
    write(path, {"y": y, "x": x})
    assert OfficialCheckpoint(tmp_path).digest() == first
    write(path, {"x": y, "y": x})
    assert OfficialCheckpoint(tmp_path).digest() != first
