"""Kernel of `attend`: simdgroup matrices over rows that are loaded once for eight heads or more.

Few tokens: the rows are split over threadgroups and a second launch joins the splits. Many: a threadgroup
takes all rows of a token, and nothing is left to join.
"""

from __future__ import annotations

import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Launch, Launcher, Template, kernel, number, run
from dsv4_mlx.ops.kernels.op import Case, KernelOp, Tolerance
from dsv4_mlx.ops.types import AttendedRows

FEW = 16  # tokens, in all; more make enough threadgroups without splits
SPLIT_ROWS = 128  # of a split, as long as there are no more than
MOST_SPLITS = 16
FLOATS = (mx.float32, mx.bfloat16, mx.float16)

_INPUTS = (
    "q", "window", "window_mask", "window_count",
    "compressed", "compressed_mask", "compressed_count", "indices", "sinks", "table",
)  # fmt: skip
_COUNTS = ("window_count", "compressed_count")


def attend(
    launcher: Launcher,
    q: mx.array,
    window: AttendedRows,
    compressed: AttendedRows | None,
    sinks: mx.array,
    inverse: mx.array,
) -> mx.array:
    """As the reference: q [B, T, H, K] float32, rows [B, S, K] of any float dtype -> [B, T, H, K]."""
    batch, tokens, heads, width = q.shape
    many = batch * tokens > FEW
    most = window.rows.shape[1] + _compressed_count(compressed)
    splits = 1 if many else min(MOST_SPLITS, -(-most // SPLIT_ROWS))
    table = inverse.view(mx.float32)
    slices, streams, tiles = _arrangement(width, many)
    threads = 32 * slices * streams
    out = (batch, tokens, heads, width)
    rows, mask, indices = _inputs(window, compressed)
    counts = _counts(window, compressed)
    launch = Launch(
        kernel("attend", "attend", _INPUTS, ("out", "stats")),
        (
            q, window.rows, sinks if window.mask is None else window.mask, counts[0],
            rows, mask, counts[1], indices, sinks, table,
        ),
        grid=(splits * threads, -(-heads // (8 * tiles)), batch * tokens),
        threadgroup=(threads, 1, 1),
        shapes=(out if many else (splits, *out), (splits, batch, tokens, heads, 2)),
        dtypes=(window.rows.dtype if many else mx.float32, mx.float32),
        template=(
            ("T", window.rows.dtype),
            ("O", window.rows.dtype if many else mx.float32),
            ("K", width),
            ("SLICES", slices),
            ("STREAMS", streams),
            ("HEAD_TILES", tiles),
            ("DIRECT", many),
            *_seen(window, compressed),
        ),
        bytes_read=_bytes_read(window, compressed, table, width, many),
    )  # fmt: skip
    sums, stats = run(launcher, launch)
    if many:
        return sums
    join = Launch(
        kernel("attend", "join", ("sums", "stats", *_COUNTS, "sinks", "table"), ("out",)),
        (sums, stats, *counts, sinks, table),
        grid=(width // 2, heads, batch * tokens),
        threadgroup=(min(width // 2, 256), 1, 1),
        shapes=(out,),
        dtypes=(window.rows.dtype,),
        template=(("O", window.rows.dtype),),
        bytes_read={"table": table.shape[0] * width * 4},
    )
    return run(launcher, join)[0]


def _arrangement(width: int, many: bool) -> tuple[int, int, int]:
    """Slices of channels, streams of rows, tiles of eight heads: what a lane keeps fits its registers."""
    channels = 64 if many and width % 64 == 0 else 128
    slices = width // channels if width > channels else 1
    return (slices, 1, 2) if many else (slices, 2, 1)


def _compressed_count(compressed: AttendedRows | None) -> int:
    """Of rows [B, N, K] as many as a query attends to: N, or J of indices [B, T, J]."""
    if compressed is None:
        return 0
    return compressed.rows.shape[1] if compressed.indices is None else compressed.indices.shape[2]


def _counts(window: AttendedRows, compressed: AttendedRows | None) -> tuple[mx.array, mx.array]:
    """uint32 [1] each: how many rows there are of the window, and compressed ones that a query attends to."""
    recent = window.rows.shape[1] if window.filled is None else window.filled
    far = (
        _compressed_count(compressed)
        if compressed is None or compressed.filled is None
        else compressed.filled
    )
    return number(recent), number(far)


def _inputs(window: AttendedRows, compressed: AttendedRows | None) -> tuple[mx.array, mx.array, mx.array]:
    """Rows [B, N, K], mask, indices [B, T, J]; where there is none, some array that is not read."""
    if compressed is None:
        return window.rows, window.rows, window.rows
    rows, mask, indices, _ = compressed
    return rows, rows if mask is None else mask, rows if indices is None else indices


def _seen(window: AttendedRows, compressed: AttendedRows | None) -> Template:
    """Which of rows [B, S, K] and [B, N, K] there are, and which have masks."""
    kind = 0 if compressed is None else 1 if compressed.indices is None else 2
    masked = compressed is not None and compressed.mask is not None
    return (("WINDOW_MASKED", window.mask is not None), ("COMPRESSED", kind), ("COMPRESSED_MASKED", masked))


def _bytes_read(
    window: AttendedRows, compressed: AttendedRows | None, table: mx.array, width: int, many: bool
) -> dict[str, int]:
    """Of table [T, K] and the rows [B, S, K], [B, N, K]; of indexed rows as many as there are indices.

    Or all: which of them are the same is not known here, nor which eight rows in a row no token sees.
    """
    found = {"table": table.shape[0] * width * 4 if many else 0}
    if compressed is None:
        found["compressed_count"] = 0
    if window.mask is None:
        found["window_mask"] = 0
    if compressed is None:
        return found | {"compressed": 0, "compressed_mask": 0, "indices": 0}
    if compressed.mask is None:
        found["compressed_mask"] = 0
    if compressed.indices is None:
        return found | {"indices": 0}
    size = compressed.rows.dtype.size * width
    return found | {"compressed": min(compressed.indices.size, compressed.rows.size // width) * size}


def refuses(
    q: mx.array, window: AttendedRows, compressed: AttendedRows | None, sinks: mx.array, inverse: mx.array
) -> str | None:
    """As `attend`: q [B, T, H, K]."""
    width = q.shape[3]
    if q.dtype != mx.float32 or sinks.dtype != mx.float32 or inverse.dtype != mx.complex64:
        return (
            f"q is {q.dtype}, sinks {sinks.dtype}, inverse {inverse.dtype}: not float32, float32, complex64"
        )
    if window.rows.dtype not in FLOATS or (compressed and compressed.rows.dtype != window.rows.dtype):
        return f"window rows are {window.rows.dtype}, expected one of {FLOATS}, compressed rows alike"
    if width % 32 or (width > 128 and width % 128) or width > 512:
        return f"heads have {width} channels, expected 32, 64, 96, 128 or a multiple of 128 up to 512"
    if inverse.shape[0] != q.shape[1] or inverse.shape[1] * 2 < width:
        return f"inverse has shape {inverse.shape}, expected a row for each of {q.shape[1]} tokens"
    if not window.rows.shape[1] or (compressed is not None and not _compressed_count(compressed)):
        return "there are no rows"
    masks = [window.mask, None if compressed is None else compressed.mask]
    if any(mask is not None and mask.dtype != mx.float32 for mask in masks):
        return "a mask is not float32"
    if compressed is not None and compressed.indices is not None and compressed.indices.dtype != mx.uint32:
        return f"indices are {compressed.indices.dtype}, expected uint32"
    return None


def cases() -> list[Case]:
    plain, compressed, indexed = (0, 0), (33, 0), (40, 17)
    made = [
        # batch, tokens, heads, width, window, (compressed, indices), dtype, size of scores
        ("31 rows", _arguments(1, 1, 8, 64, 31, plain, mx.float32, 1.0)),
        ("32 rows, two heads", _arguments(1, 2, 2, 32, 32, plain, mx.float32, 1.0)),
        ("33 rows, nine heads", _arguments(2, 2, 9, 64, 33, plain, mx.float32, 1.0)),
        ("127 rows", _arguments(1, 1, 8, 128, 127, plain, mx.bfloat16, 1.0)),
        ("128 rows in all", _arguments(1, 1, 8, 64, 95, compressed, mx.float16, 1.0)),
        ("129 rows in two splits", _arguments(1, 3, 8, 64, 96, compressed, mx.float32, 1.0)),
        ("indexed rows", _arguments(2, 2, 8, 64, 31, indexed, mx.bfloat16, 1.0)),
        ("512 channels", _arguments(1, 1, 8, 512, 33, plain, mx.bfloat16, 1.0)),
        ("large scores", _arguments(1, 1, 8, 64, 33, compressed, mx.float32, 1e4)),
        ("tiny scores", _arguments(1, 1, 8, 64, 33, compressed, mx.float32, 1e-38)),
        ("many tokens", _arguments(1, 17, 9, 64, 33, compressed, mx.float32, 1.0)),
        ("many tokens, indexed rows", _arguments(1, 17, 8, 64, 40, (40, 16), mx.bfloat16, 1.0)),
        ("many tokens, window only", _arguments(2, 9, 17, 128, 31, plain, mx.float16, 1.0)),
        ("no tokens", _arguments(1, 0, 8, 64, 32, plain, mx.float32, 1.0)),
    ]
    found = [Case(name, given, tolerance=_TOLERANCES[given[1].rows.dtype]) for name, given in made]
    hidden = _arguments(1, 2, 8, 64, 33, indexed, mx.float32, 1.0, seen=0.0)
    everything = _arguments(1, 1, 8, 64, 33, compressed, mx.float32, 1.0, seen=None)
    return [
        *found,
        Case("every row hidden", hidden),
        Case("no masks", everything),
        Case("wide table", (*everything[:4], mx.concatenate([everything[4]] * 2, axis=1))),
    ]


# A result rounded to bfloat16 may land on the neighbour of the reference's.
_TOLERANCES = {
    mx.float32: Tolerance(1e-5),
    mx.bfloat16: Tolerance(1e-5, share=0.02, step=2**-7),
    mx.float16: Tolerance(1e-5, share=0.02, step=2**-10),
}


def _arguments(
    batch: int, tokens: int, heads: int, width: int, recent: int, compressed: tuple[int, int],
    dtype: mx.Dtype, size: float, seen: float | None = 0.7,
) -> tuple[mx.array, AttendedRows, AttendedRows | None, mx.array, mx.array]:  # fmt: skip
    """q [B, T, H, K], rows [B, S, K], compressed rows [B, N, K] or None, sinks [H], inverse [T, K / 2]."""
    keys = iter(mx.random.split(mx.random.key(recent + width), 9))

    def mask(*shape: int) -> mx.array | None:  # [T, S], or None
        if seen is None:
            return None
        return mx.where(mx.random.uniform(shape=shape, key=next(keys)) < seen, 0.0, -mx.inf)

    q = mx.random.normal((batch, tokens, heads, width), key=next(keys)) * (size * width**-0.5)
    window = AttendedRows(
        mx.random.normal((batch, recent, width), key=next(keys)).astype(dtype), mask(tokens, recent)
    )
    sinks = mx.random.normal((heads,), key=next(keys))
    angles = mx.random.uniform(0, 6, (tokens, width // 2), key=next(keys))
    inverse = mx.cos(angles) + 1j * mx.sin(angles)
    count, indexed = compressed
    if not count:
        return q, window, None, sinks, inverse
    rows = mx.random.normal((batch, count, width), key=next(keys)).astype(dtype)
    if not indexed:
        return q, window, AttendedRows(rows, mask(tokens, count)), sinks, inverse
    # Of few tokens no two choose the same row, so that the bytes loaded are known.
    order = mx.argsort(mx.random.uniform(shape=(batch, count), key=next(keys)), axis=-1)
    places = mx.arange(tokens * indexed) % count
    indices = mx.take(order, places, axis=1).reshape(batch, tokens, indexed).astype(mx.uint32)
    return q, window, AttendedRows(rows, mask(batch, tokens, indexed), indices), sinks, inverse


OP = KernelOp("attend", attend, refuses, cases)
