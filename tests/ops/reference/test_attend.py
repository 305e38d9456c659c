"""Attention: one softmax over window, compressed rows and sink, against numpy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from compare import OP, assert_bits, assert_close

from dsv4_mlx.ops.reference import attend as module
from dsv4_mlx.ops.types import AttendedRows

B, T, H, K, S, N = 2, 7, 5, 16, 12, 9
Array = np.ndarray


def attend(q: mx.array, window: AttendedRows, compressed: AttendedRows | None, sinks: mx.array) -> mx.array:
    """Without a table of the result."""
    return module.attend(q, window, compressed, sinks, mx.ones((1, q.shape[-1] // 2), mx.complex64))


def slow(
    q: Array, rows: Array, seen: Array, sinks: Array, scale: float, far: Array | None, far_seen: Array | None
) -> Array:
    """A loop over everything: rows [B, S, K], seen [B, T, S], far [B, T, n, K], far_seen [B, T, n]."""
    out = np.zeros(q.shape)
    for b, t, h in np.ndindex(*q.shape[:3]):
        taken = [rows[b, s] for s in range(rows.shape[1]) if seen[b, t, s]]
        if far is not None and far_seen is not None:
            taken += [far[b, t, n] for n in range(far.shape[2]) if far_seen[b, t, n]]
        if not taken:
            continue
        keys = np.stack(taken).astype(np.float64)
        s = keys @ q[b, t, h].astype(np.float64) * scale
        top = max(s.max(), sinks[h])
        p = np.exp(s - top)
        out[b, t, h] = (p / (p.sum() + np.exp(sinks[h] - top))) @ keys
    return out


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, Array]:
    return {
        "q": rng.standard_normal((B, T, H, K)).astype(np.float32) * 2,
        "near": rng.standard_normal((B, S, K)).astype(np.float32),
        "far": rng.standard_normal((B, N, K)).astype(np.float32),
        "sinks": rng.standard_normal(H).astype(np.float32) * 2,
        "near_seen": rng.random((T, S)) < 0.6,
        "far_seen": rng.random((T, N)) < 0.5,
    }


def hidden(seen: Array) -> mx.array:
    """What is added to the scores."""
    return mx.array(np.where(seen, np.float32(0), np.float32(-np.inf)))


def spread(seen: Array) -> Array:
    return np.broadcast_to(seen, (B, *seen.shape))


def test_window_only(arrays: dict[str, Array]) -> None:
    a = arrays
    window = AttendedRows(mx.array(a["near"]), hidden(a["near_seen"]))
    found = attend(0.25 * mx.array(a["q"]), window, None, mx.array(a["sinks"]))
    expected = slow(a["q"], a["near"], spread(a["near_seen"]), a["sinks"], 0.25, None, None)
    assert_close(np.array(found), expected, OP, "attention")


def test_window_and_compressed_rows(arrays: dict[str, Array]) -> None:
    a = arrays
    window = AttendedRows(mx.array(a["near"]), hidden(a["near_seen"]))
    compressed = AttendedRows(mx.array(a["far"]), hidden(a["far_seen"]))
    found = attend(0.25 * mx.array(a["q"]), window, compressed, mx.array(a["sinks"]))
    far = np.broadcast_to(a["far"][:, None], (B, T, N, K))
    expected = slow(a["q"], a["near"], spread(a["near_seen"]), a["sinks"], 0.25, far, spread(a["far_seen"]))
    assert_close(np.array(found), expected, OP, "attention")


def test_picked_rows(arrays: dict[str, Array], rng: np.random.Generator) -> None:
    """Each query sees its own indices, never a neighbour's; batches have rows of their own."""
    a = arrays
    indices = np.stack([[rng.permutation(N)[:4] for _ in range(T)] for _ in range(B)]).astype(np.uint32)
    seen = rng.random((B, T, 4)) < 0.7
    window = AttendedRows(mx.array(a["near"]), hidden(a["near_seen"]))
    compressed = AttendedRows(mx.array(a["far"]), hidden(seen), mx.array(indices))
    found = attend(0.25 * mx.array(a["q"]), window, compressed, mx.array(a["sinks"]))
    far = np.stack([a["far"][b][indices[b]] for b in range(B)])
    expected = slow(a["q"], a["near"], spread(a["near_seen"]), a["sinks"], 0.25, far, seen)
    assert_close(np.array(found), expected, OP, "attention")


def test_none_means_all_visible(arrays: dict[str, Array]) -> None:
    a = arrays
    sinks, q = mx.array(a["sinks"]), mx.array(a["q"])
    near, far = mx.array(a["near"]), mx.array(a["far"])
    everything = AttendedRows(near, mx.zeros((T, S))), AttendedRows(far, mx.zeros((T, N)))
    expected = attend(q, *everything, sinks)
    assert_bits(
        np.array(attend(q, AttendedRows(near, None), AttendedRows(far, None), sinks)), np.array(expected)
    )


def test_picking_every_row_is_seeing_every_row(arrays: dict[str, Array]) -> None:
    a = arrays
    q, sinks = mx.array(a["q"]), mx.array(a["sinks"])
    window, far = AttendedRows(mx.array(a["near"]), None), mx.array(a["far"])
    indices = mx.array(np.broadcast_to(np.arange(N, dtype=np.uint32), (B, T, N)))
    direct = attend(q, window, AttendedRows(far, None), sinks)
    assert_close(np.array(attend(q, window, AttendedRows(far, None, indices), sinks)), np.array(direct), OP)


def test_nothing_visible_gives_zero(arrays: dict[str, Array]) -> None:
    """All weight goes to the sink, which has no value."""
    a = arrays
    window = AttendedRows(mx.array(a["near"]), mx.full((T, S), -mx.inf))
    compressed = AttendedRows(mx.array(a["far"]), mx.full((T, N), -mx.inf))
    for far in (None, compressed):
        found = np.array(attend(0.25 * mx.array(a["q"]), window, far, mx.array(a["sinks"])))
        assert (found == 0).all()


def test_invisible_rows_weigh_nothing(arrays: dict[str, Array]) -> None:
    """What an invisible row holds can't matter, even when it would win the softmax."""
    a = arrays
    a["near_seen"][:, 3] = False
    sinks, q, seen = mx.array(a["sinks"]), mx.array(a["q"]), hidden(a["near_seen"])
    before = attend(q, AttendedRows(mx.array(a["near"]), seen), None, sinks)
    a["near"][:, 3] = 1e3
    after = attend(q, AttendedRows(mx.array(a["near"]), seen), None, sinks)
    assert_bits(np.array(after), np.array(before))


def test_sinks_are_not_scaled() -> None:
    """One row with score 0 and a sink of ln 3: the row gets a quarter."""
    q, row = mx.zeros((1, 1, 1, 4)), mx.ones((1, 1, 4))
    found = attend(q, AttendedRows(row, None), None, mx.array([np.log(3.0)], mx.float32))
    assert np.array(found).ravel() == pytest.approx([0.25] * 4)


def test_large_scores_do_not_overflow() -> None:
    q, rows = mx.full((1, 1, 1, 4), 1e4), mx.array([[[1e4] * 4, [-1e4] * 4]])
    found = np.array(attend(q, AttendedRows(rows, None), None, mx.array([0.0])))
    assert np.array_equal(found, np.full((1, 1, 1, 4), 1e4, np.float32))


def test_blocks_of_queries_change_nothing(
    arrays: dict[str, Array], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = arrays
    indices = mx.array(rng.integers(0, N, (B, T, 4)).astype(np.uint32))
    seen = hidden(rng.random((B, T, 4)) < 0.7)
    window = AttendedRows(mx.array(a["near"]), hidden(a["near_seen"]))
    arguments = (
        mx.array(a["q"]),
        window,
        AttendedRows(mx.array(a["far"]), seen, indices),
        mx.array(a["sinks"]),
    )
    whole = attend(*arguments)
    monkeypatch.setattr(module, "_BLOCK", 2 * 4 * K)
    assert_close(np.array(attend(*arguments)), np.array(whole), OP, "in blocks of two queries")


def test_result_is_turned_back(arrays: dict[str, Array], rng: np.random.Generator) -> None:
    a = arrays
    q, sinks, window = mx.array(a["q"]), mx.array(a["sinks"]), AttendedRows(mx.array(a["near"]), None)
    table = np.exp(1j * rng.random((T, K // 2))).astype(np.complex64)
    found = np.array(module.attend(q, window, None, sinks, mx.array(table)))
    plain = np.array(attend(q, window, None, sinks)).view(np.complex64)
    assert_close(found, (plain * table[:, None]).view(np.float32), OP)


def test_result_has_the_dtype_of_the_rows(arrays: dict[str, Array]) -> None:
    a = arrays
    q = mx.array(a["q"])
    window = AttendedRows(mx.array(a["near"]).astype(mx.bfloat16), None)
    assert attend(q, window, None, mx.array(a["sinks"])).dtype == mx.bfloat16


def test_shared_rows_in_blocks_of_queries_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = (2, 7, 4, 32), (2, 9, 32), (2, 20, 32)
    q, near, far = (mx.random.normal(shape, key=mx.random.key(i)) for i, shape in enumerate(shapes))
    mask = mx.where(mx.arange(20) < 3 + mx.arange(7)[:, None], 0.0, -mx.inf)
    inverse = mx.ones((7, 16), mx.complex64)
    given = q, AttendedRows(near, mask[:, :9]), AttendedRows(far, mask), mx.zeros((4,)), inverse
    whole = module.attend(*given)
    monkeypatch.setattr(module, "_SHARED", 3 * 20 * 32)
    assert np.array_equal(np.array(module.attend(*given)), np.array(whole))
