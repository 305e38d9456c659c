"""Routed experts that are all in memory."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from dsv4_mlx.checkpoint.manifest import PACKINGS, SEGMENT_ITEM_BYTES, ExpertTable, packed, segments_of
from dsv4_mlx.model.tensors import ExpertProduct, Routed
from dsv4_mlx.ops.types import Bank

# format -> (mode, bits, group) as MLX names them
QUANTISED = {name: ("affine" if p.biases else name, p.bits, p.group) for name, p in PACKINGS.items()}

DTYPES = {mx.uint32: "U32", mx.uint8: "U8", mx.bfloat16: "BF16"}  # as segments name them


def layout(format: str, rows: int, columns: int) -> dict[str, tuple[mx.Dtype, tuple[int, int]]]:
    """Part -> dtype and shape of a quantised matrix [rows, columns] as MLX takes it."""
    kinds = {name: kind for kind, name in DTYPES.items()}
    return {part: (kinds[dtype], shape) for part, (dtype, shape) in packed(format, rows, columns).items()}


def room(count: int, record_bytes: int) -> mx.array:
    """Memory for `count` records to be written to, evaluated: uint32 [count, record_bytes / 4].

    Arrays of more than 2^31 - 1 elements are for views only, so it is filled as words of 64 bits.
    """
    array = mx.zeros((count, record_bytes // 8), mx.uint64).view(mx.uint32)
    mx.eval(array)
    return array


def segments_differ(table: ExpertTable, width: int, hidden: int) -> bool:
    """Whether the records are not those of experts hidden -> width -> hidden. Views are not checked again."""
    return table.segments != segments_of((width, hidden), (width, hidden), (hidden, width), table.format)


class ResidentExperts:
    """The experts of a layer as views of one array [E, record]: nothing is copied or rearranged.

    In a record the gate's codes are followed by those of up, and so are the scales: each pair is one matrix
    of 2 I outputs.
    """

    def __init__(
        self, records: mx.array, table: ExpertTable, dtype: mx.Dtype, product: ExpertProduct
    ) -> None:
        self.records, self._product = records, product
        self.gate_up, self.down = expert_banks(records, table, dtype)

    def routed(self, chunks: Sequence[Routed]) -> list[mx.array]:
        return [self._product(chunk, self.gate_up, self.down) for chunk in chunks]


def expert_banks(records: mx.array, table: ExpertTable, dtype: mx.Dtype) -> tuple[Bank, Bank]:
    """records uint32 [E, record] -> gate|up and down over all of them, as views."""
    return _bank(records, table, ("gate", "up"), dtype), _bank(records, table, ("down",), dtype)


def _bank(records: mx.array, table: ExpertTable, names: tuple[str, ...], dtype: mx.Dtype) -> Bank:
    mode, bits, group = QUANTISED[table.format]
    parts = {
        part: _joined(records, table, [f"{n}_{part}" for n in names])
        for part in ("codes", "scales", "biases")
    }
    codes, scales, biases = parts["codes"], parts["scales"], parts["biases"]
    if codes is None:
        raise ValueError("an expert record has no codes")
    if mode == "affine" and scales is not None and biases is not None:
        scales, biases = scales.astype(dtype), biases.astype(dtype)
    return Bank(codes, scales, biases, mode, bits, group)


def _joined(records: mx.array, table: ExpertTable, names: list[str]) -> mx.array | None:
    """Neighbouring segments of every record as one view [E, rows, columns].

    Made of ops that no number of elements is too large for: no dimension may pass 2^31 - 1, so the records
    can't be flattened.
    """
    segments = [s for name in names for s in table.segments if s.name == name]
    if not segments:
        return None
    first = segments[0]
    rows = sum(s.shape[0] for s in segments)
    columns = first.shape[1]
    dtype = next(kind for kind, name in DTYPES.items() if name == first.dtype)
    whole = records if dtype == mx.uint32 else records.view(dtype)
    start = first.offset // SEGMENT_ITEM_BYTES[first.dtype]
    return mx.unflatten(whole[:, start : start + rows * columns], 1, (rows, columns))
