"""Calls that a kernel can't do: each is named, and goes to the reference."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from ops.kernels.proven import Proven

from dsv4_mlx.ops.kernels import attend, expert_ffn, group_project, index_select, shared_ffn
from dsv4_mlx.ops.kernels.cases import bank, routed
from dsv4_mlx.ops.kernels.op import KernelOp
from dsv4_mlx.ops.table import REFERENCE
from dsv4_mlx.ops.types import AttendedRows, Bank

X, IDS, WEIGHTS, GATE_UP, DOWN, LIMIT = routed(1, 4, 2, 64, 64, "mxfp4", 1.0)
Q, ROWS, SINKS, TURN = (
    mx.ones((1, 1, 8, 64)),
    AttendedRows(mx.ones((1, 9, 64)), None),
    mx.ones(8),
    mx.ones((1, 32), mx.complex64),
)
HALF = AttendedRows(mx.ones((1, 9, 64), mx.float16), None)
PLAIN = Bank(mx.ones((4, 128, 64)))

REFUSED: list[tuple[KernelOp, tuple[Any, ...], str]] = [
    (attend.OP, (Q.astype(mx.float16), ROWS, None, SINKS, TURN), "q is mlx.core.float16"),
    (attend.OP, (Q, ROWS, HALF, SINKS, TURN), "compressed rows alike"),
    (attend.OP, (Q[..., :40], AttendedRows(ROWS.rows[..., :40], None), None, SINKS, TURN), "40 channels"),
    (attend.OP, (Q, AttendedRows(ROWS.rows[:, :0], None), None, SINKS, TURN), "no rows"),
    (attend.OP, (Q, ROWS, None, SINKS, mx.ones((2, 32), mx.complex64)), "inverse has shape"),
    (
        attend.OP,
        (Q, AttendedRows(ROWS.rows, mx.ones((1, 9), mx.bool_)), None, SINKS, TURN),
        "mask is not float32",
    ),
    (index_select.OP, (Q, mx.ones((1, 1, 8)), mx.ones((1, 9, 64)), None, 10), "10 indices are wanted of 9"),
    (index_select.OP, (Q[:, :, :5], mx.ones((1, 1, 5)), mx.ones((1, 9, 64)), None, 3), "5 heads of 64"),
    (index_select.OP, (Q, mx.ones((1, 1, 8), mx.int32), mx.ones((1, 9, 64)), None, 3), "mlx.core.int32"),
    (expert_ffn.OP, (X, IDS, WEIGHTS, PLAIN, DOWN, LIMIT), "plain floats"),
    (expert_ffn.OP, (X, IDS.astype(mx.float32), WEIGHTS, GATE_UP, DOWN, LIMIT), "ids are mlx.core.float32"),
    (expert_ffn.OP, (X, IDS, WEIGHTS, GATE_UP._replace(mode="nvfp4"), DOWN, LIMIT), "'nvfp4' with 4 bits"),
    (expert_ffn.OP, (X, IDS, WEIGHTS, GATE_UP._replace(group=16), DOWN, LIMIT), "groups of 16"),
    (expert_ffn.OP, (X, IDS, WEIGHTS, GATE_UP, bank(4, 64, 32, "mxfp4", 1), LIMIT), "codes are"),
    (expert_ffn.OP, (X, IDS, WEIGHTS, GATE_UP, DOWN, LIMIT, mx.ones((1, 1, 32))), "start is"),
    (expert_ffn.OP, (X[..., :40], IDS, WEIGHTS, GATE_UP, DOWN, LIMIT), "a row has 40 weights"),
    (shared_ffn.OP, (X, GATE_UP, DOWN, LIMIT), "expected single matrices"),
    (group_project.OP, (Q, PLAIN), "plain floats"),
    (group_project.OP, (Q, bank(3, 16, 64, "mxfp8", 1)), "can't be divided into 3 groups"),
    (group_project.OP, (Q, bank(4, 16, 64, "mxfp8", 1)._replace(biases=mx.ones((4, 16, 2)))), "has biases"),
]  # fmt: skip


@pytest.mark.parametrize(("op", "arguments", "words"), REFUSED)
def test_refused(op: KernelOp, arguments: tuple[Any, ...], words: str) -> None:
    reason = op.refuses(*arguments)
    assert reason is not None and words in reason
    with pytest.raises(ValueError, match="use the reference"):
        op.bound(Proven())(*arguments)


def test_a_refused_call_goes_to_the_reference() -> None:
    machine = Proven()
    taken = attend.OP.bound(machine, REFERENCE.attend)(Q, ROWS, None, SINKS, TURN)
    launched = len(machine.launches)
    assert taken.shape == Q.shape and launched
    plain = Bank(mx.random.normal((2, 16, 256)))
    found = group_project.OP.bound(machine, REFERENCE.group_project)(Q, plain)
    assert np.array_equal(np.array(found), np.array(REFERENCE.group_project(Q, plain)))
    assert len(machine.launches) == launched
