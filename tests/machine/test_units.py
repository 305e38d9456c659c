"""What people type, and what they read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.machine.units import (
    duration,
    parse_memory,
    parse_size,
    parse_speed,
    parse_tokens,
    rate,
    size,
    speed,
)


@pytest.mark.parametrize(
    ("text", "count"),
    [("64GB", 64e9), (" 64 gb ", 64e9), ("64GiB", 64 << 30), ("1.5MiB", 1.5 * (1 << 20)), ("2TB", 2e12)]
    + [("3kB", 3e3), ("0GB", 0.0), ("64G", 64e9), ("100 m", 100e6)],
)
def test_sizes_are_read(text: str, count: float) -> None:
    assert parse_size(text) == count


@pytest.mark.parametrize(
    "text",
    ["", "64", "64Gi", "-1GB", "nan GB", "٣GB", "1e3MB", "8 bits", "64Gb", "1 Gib", "64GB/s", "6 4GB", "B"],
)
def test_what_is_no_size(text: str) -> None:
    assert parse_size(text) is None


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("4.2GB/s", 4.2e9), ("4.2GB", 4.2e9), ("5 gib / s", 5 * (1 << 30)), ("100Mbit/s", 12.5e6)]
    + [("100 mbps", 12.5e6), ("1Gbit/s", 125e6)],
)
def test_speeds_are_read_and_bits_are_no_bytes(text: str, per_second: float) -> None:
    assert parse_speed(text) == per_second


@pytest.mark.parametrize("text", ["fast", "100Mb/s", "100Mb", "100Mbit", "4/s", "GB/s", "5GB/h"])
def test_what_is_no_speed(text: str) -> None:
    assert parse_speed(text) is None


def test_memory_is_sold_in_binary_units() -> None:
    assert {parse_memory(text) for text in ("64GB", "64gib", "64", " 64 ", "64G", "64 g")} == {64 << 30}
    assert all(parse_memory(text) is None for text in ("64Gb", "64x", "", "GB"))


@pytest.mark.parametrize(
    ("text", "count"), [("4096", 4096), ("131,072", 131072), ("128K", 131072), (" 1m ", 1 << 20), ("0", 0)]
)
def test_tokens_are_read(text: str, count: int) -> None:
    assert parse_tokens(text) == count


@pytest.mark.parametrize("text", ["", "K", "1.5K", "1,31", "-3", "128KB", "1e3", "٣"])
def test_what_is_no_number_of_tokens(text: str) -> None:
    assert parse_tokens(text) is None


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.0 kB"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_951, "1.0 MB"),
    ]
    + [(48 << 30, "51.5 GB"), (159_609_485_896, "159.6 GB"), (999_960_000_000, "1.00 TB")],
)
def test_sizes_are_printed(count: float, said: str) -> None:
    assert size(count) == said
    assert speed(count) == f"{said}/s"


@given(st.floats(0, 1e15))
def test_what_is_printed_reads_as_the_same(count: float) -> None:
    text = size(count)
    if not text.endswith(" B"):
        assert parse_size(text) == pytest.approx(count, rel=0.05)
        assert parse_speed(speed(count)) == parse_size(text)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.2, "0.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.9, "1 min 00 s"),
        (61, "1 min 01 s"),
    ]
    + [(3599.8, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_rates() -> None:
    assert [rate(value) for value in (None, 3.14, 99.94, 99.96, 1234.5)] == [
        "-",
        "3.1",
        "99.9",
        "100",
        "1,234",
    ]
