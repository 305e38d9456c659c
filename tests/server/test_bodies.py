"""Bytes of hostile and odd bodies."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.server.api_errors import ApiError
from dsv4_mlx.server.options import ServerLimits
from dsv4_mlx.server.protocols import fields
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


texts = st.text(st.sampled_from(list('\\"/abnuD8eé漢😀\n\x7f,[{ ')), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 99) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)


@given(body=st.dictionaries(texts, values, max_size=4), ascii=st.booleans(), piece=st.integers(8, 24))
def test_a_large_body_is_read_in_pieces_as_a_small_one_is(body: object, ascii: bool, piece: int) -> None:
    """Wherever pieces end: in escapes, between the halves of a character, in white space."""
    raw = json.dumps(body, ensure_ascii=ascii).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PIECE", piece)
        assert parse(raw, replace(LIMITS, large=0)) == parse(raw, LIMITS)


@given(tail=st.text(st.sampled_from('\\"u0dD8x\n,}'), max_size=12))
def test_what_is_no_json_is_refused_in_pieces_too(tail: str) -> None:
    raw = ('{"a": "' + "\\\\" * 20 + tail).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PIECE", 8)
        assert outcome(raw, replace(LIMITS, large=0)) == outcome(raw, LIMITS)


def outcome(raw: bytes, limits: ServerLimits) -> object:
    try:
        return parse(raw, limits)
    except ApiError as refused:
        return refused.status


@given(body=st.dictionaries(texts, values, max_size=4), ascii=st.booleans(), piece=st.integers(2, 24))
def test_structure_is_counted_outside_strings(body: object, ascii: bool, piece: int) -> None:
    text = json.dumps(body, ensure_ascii=ascii)
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", text)
    count = sum(bare.count(c) for c in ",[{")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "PIECE", piece)
        parse(text.encode(), replace(LIMITS, structure=count))
        with pytest.raises(ApiError, match="values") as refused:
            parse(text.encode(), replace(LIMITS, structure=count - 1))
    assert refused.value.status == 413


def test_other_threads_run_while_a_large_body_is_read() -> None:
    """32 MB of escapes, then of values: the interpreter is free again within a fraction of a second."""
    text = b'{"a": "' + b"\\n\\u00e9x" * (4 << 20) + b'"}'
    many = b'{"a": [' + b"[]," * (10 << 20) + b"1]}"
    for raw in (text[: 32 << 20] + b'"}', many):
        assert longest_wait(partial(outcome, raw, ServerLimits())) < 0.4


def longest_wait(work: Callable[[], object]) -> float:
    """The longest that another thread, which wants to run every 2 ms, had to wait for `work`."""
    waits: list[float] = []
    done = threading.Event()

    def look() -> None:
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.002)
            now = time.perf_counter()
            waits.append(now - last)
            last = now

    thread = threading.Thread(target=look)
    thread.start()
    work()
    done.set()
    thread.join()
    return max(waits)
