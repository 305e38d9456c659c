"""Sizes, speeds and times: read as people type them, printed as people read them.

GB is 10^9 bytes and GiB 2^30; what is printed is decimal, as disks are sold. A bit is an eighth of a byte and
spelled out, since Gb is anyone's guess.
"""

from __future__ import annotations

import re

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_NUMBER = r"\s*([0-9]+(?:\.[0-9]+)?)\s*"  # ASCII digits
_BYTES = re.compile(_NUMBER + r"([KMGT])(?:(I?)B)?\s*")
_BITS = re.compile(_NUMBER + r"([KMGT])(I?)(?:BITS?\s*/\s*S|BPS)\s*")
_TOKENS = re.compile(r"\s*([0-9]{1,3}(?:,[0-9]{3}){1,4}|[0-9]{1,15})\s*([KM]?)\s*")
_GUESS = re.compile(r"[kKMGT]i?b(?:/s)?\s*$")  # bits or bytes?


def parse_size(text: str) -> float | None:
    """Bytes of "64GB", "64G" or "16 GiB", capitals or not; None for what is no size."""
    return None if _GUESS.search(text) else _amount(_BYTES, text)


def parse_memory(text: str) -> int | None:
    """Bytes of a machine's memory, which is sold in binary units: a Mac of "64GB", or of "64", has 64 GiB."""
    number = re.fullmatch(_NUMBER, text)
    binary = f"{text}GiB" if number else re.sub(r"(?i)([KMGT])(I?B)?\s*$", r"\1iB", text)
    size = None if _GUESS.search(text) else parse_size(binary)
    return None if size is None else int(size)


def parse_tokens(text: str) -> int | None:
    """Tokens of "4096", "131,072", "128K" or "1M", where K is 1024; None for what is no such number."""
    found = _TOKENS.fullmatch(text.upper())
    return None if found is None else int(found[1].replace(",", "")) * 1024 ** _POWERS[found[2]]


def parse_speed(text: str) -> float | None:
    """Bytes per second of "4.2GB/s", "4.2GB", "100Mbit/s" or "100Mbps"; None for what is no speed."""
    bits = _amount(_BITS, text)
    return bits / 8 if bits is not None else parse_size(re.sub(r"(?i)\s*/\s*s\s*$", "", text))


def _amount(pattern: re.Pattern[str], text: str) -> float | None:
    found = pattern.fullmatch(text.upper())
    return None if found is None else float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]]


def size(count: float) -> str:
    """Bytes for people."""
    if round(count) < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if round(count, 1) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.2f} TB"


def speed(per_second: float) -> str:
    """Bytes per second for people."""
    return f"{size(per_second)}/s"


def duration(seconds: float) -> str:
    """A time for people, to two digits or so."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def rate(value: float | None) -> str:
    """Tokens per second for people, without the unit; "-" where it is not known."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}"
