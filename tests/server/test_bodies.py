"""Bytes of hostile and odd bodies."""

from __future__ import annotations

import pytest

from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols.fields import parse

LIMITS = ServerLimits(depth=8)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b'"x"', b"null", b"\xff{}", b'{"a": NaN}', b'{"a": Infinity}', b'{"a": 1e999}',
        b'{"a": 123456789012345678901234567890}', b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"[" * 8 + b"]" * 8 + b"}",
    ],
)  # fmt: skip
def test_bodies_that_are_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse(raw, LIMITS)
    assert refused.value.status == 400


def test_bodies_that_are_taken() -> None:
    assert parse(b'\xef\xbb\xbf{"a": null, "b": 1, "b": 2}', LIMITS) == {"b": 2}
    assert parse(b'{"a": "x\\ud800y", "\\udfff": 1}', LIMITS) == {"a": "x\ufffdy", "\ufffd": 1}
    assert parse(b'{"a": "\\ud83d\\ude00"}', LIMITS) == {"a": "😀"}
