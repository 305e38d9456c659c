"""What a check or a parse found, in words: what happened, where, and what to do about it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metal_proof.signature import Signature

# runtime/abi.h, enum Kind.
KINDS = {
    1: "race",
    2: "out-of-bounds",
    3: "uninitialised-read",
    4: "write-to-input",
    5: "divergent-barrier",
    6: "threadgroup-memory",
    7: "inactive-lane",
    8: "out-of-bounds",
    9: "division-by-zero",
    10: "too-long",
    11: "misaligned",
}


class Party(ctypes.Structure):
    _fields_ = [
        ("place", ctypes.c_uint64),
        ("thread", ctypes.c_uint32),
        ("group", ctypes.c_uint32),
        ("atomic", ctypes.c_uint32),
        ("write", ctypes.c_uint32),
        ("matrix", ctypes.c_uint32),
    ]


class RawFinding(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("region", ctypes.c_int32),
        ("bytes", ctypes.c_uint32),
        ("offset", ctypes.c_int64),
        ("count", ctypes.c_uint64),
        ("now", Party),
        ("before", Party),
    ]


@dataclass(frozen=True)
class Finding:
    """`where` is "body", "header" or "signature", with the line counted there; line 0 if it is not known."""

    kind: str
    message: str
    where: str = "body"
    line: int = 0
    code: str = ""

    def __str__(self) -> str:
        place = f"{self.where} line {self.line}: " if self.line else ""
        code = f"\n    {self.code}" if self.code else ""
        return f"{self.kind}: {place}{self.message}{code}"


@dataclass(frozen=True)
class Place:
    where: str
    line: int
    code: str

    def __str__(self) -> str:
        return f"{self.where} line {self.line} `{self.code}`" if self.line else "an unknown line"


def place_in(signature: Signature, line: int) -> Place:
    """A line of the generated text, counted as the author of the kernel counts."""
    lines = signature.text.splitlines()
    if not 0 < line <= len(lines):
        return Place("body", 0, "")
    code = lines[line - 1].strip()
    if line <= signature.header_lines:
        return Place("header", line, code)
    if line < signature.body_line:
        return Place("signature", line - signature.header_lines, code)
    return Place("body", line - signature.body_line + 1, code)


def lines_of(library: Path, places: Sequence[int]) -> dict[int, int]:
    """The line in the generated text of each place in the library's code, 0 if unknown.

    Functions of msl.h are inlined into the kernel; the innermost frame that is the kernel's own counts.
    """
    tool = shutil.which("addr2line") or shutil.which("llvm-addr2line")
    wanted = sorted(set(places) - {0})
    found = dict.fromkeys(places, 0)
    for place in wanted if tool else []:
        command = [str(tool), "-i", "-e", str(library), hex(place)]
        output = subprocess.run(command, capture_output=True, text=True).stdout
        # g++ names the text by its #line directive or by the file it came from, as it pleases.
        match = re.search(r"(?:kernel\.metal|<stdin>):(\d+)", output)
        if match:
            found[place] = int(match.group(1))
    return found


@dataclass(frozen=True)
class Regions:
    """Names and element sizes of the buffers, and names of the threadgroup variables by id."""

    names: Sequence[str]
    item_sizes: Sequence[int]
    sizes: Sequence[int]
    variables: dict[int, str]

    def element(self, raw: RawFinding) -> str:
        if raw.region < 0:
            name = self.variables.get(-1 - raw.region, "threadgroup memory")
            return f"{raw.bytes} bytes of threadgroup variable `{name}` at byte {raw.offset}"
        name, item = self.names[raw.region], self.item_sizes[raw.region]
        part = "" if raw.offset % item == 0 else f" (byte {raw.offset % item} of it)"
        return f"{raw.bytes} bytes at `{name}[{raw.offset // item}]`{part}"

    def extent(self, raw: RawFinding) -> str:
        if raw.region < 0:
            return f"it has {raw.count} bytes"
        return f"it has {self.sizes[raw.region] // self.item_sizes[raw.region]} elements"

    def fence(self, raw: RawFinding) -> str:
        return "mem_flags::mem_threadgroup" if raw.region < 0 else "mem_flags::mem_device"


# Beyond the gap between buffers (runtime/check.cpp) the nearest one is a guess.
_FAR = 1 << 16


def _who(party: Party) -> str:
    operation = " (in a simdgroup matrix operation)" if party.matrix else ""
    return f"thread {party.thread} of threadgroup {party.group}{operation}"


def _verb(party: Party, past: bool = False) -> str:
    if party.atomic:
        return "atomically updated" if past else "atomically updates"
    if party.write:
        return "wrote" if past else "writes"
    return "read" if past else "reads"


def _race(raw: RawFinding, regions: Regions, before: Place) -> str:
    if raw.now.group != raw.before.group:
        advice = "threadgroups run in any order; give each its own elements, or use atomics"
    else:
        advice = f"no barrier with {regions.fence(raw)} lies between; add one"
    return (
        f"{_who(raw.now)} {_verb(raw.now)} {regions.element(raw)}, which {_who(raw.before)} "
        f"{_verb(raw.before, past=True)} at {before}; {advice}"
    )


def _divergent(raw: RawFinding, signature: Signature) -> str:
    scope = "threadgroup_barrier" if raw.region else "simdgroup_barrier"
    other = "has returned"
    if raw.offset:
        other = f"waits at {place_in(signature, raw.offset)}"
    return (
        f"{_who(raw.now)} waits at a {scope} that {raw.count} of the threads never reach: "
        f"thread {raw.before.thread} {other}; move the barrier out of divergent code"
    )


def describe(raw: RawFinding, signature: Signature, regions: Regions, lines: dict[int, int]) -> Finding:
    place = place_in(signature, raw.line or lines.get(raw.now.place, 0))
    kind = KINDS[raw.kind]
    who = _who(raw.now)
    if raw.kind == 1:
        message = _race(raw, regions, place_in(signature, lines.get(raw.before.place, 0)))
    elif raw.kind == 2 and abs(raw.offset) > _FAR and raw.region >= 0:
        nearest = regions.names[raw.region]
        message = f"{who} {_verb(raw.now)} {raw.bytes} bytes far from any buffer (the nearest is `{nearest}`)"
    elif raw.kind == 2:
        message = f"{who} {_verb(raw.now)} {regions.element(raw)}, but {regions.extent(raw)}"
    elif raw.kind == 3:
        message = f"{who} {_verb(raw.now)} {regions.element(raw)}, which nothing has written"
    elif raw.kind == 4:
        message = f"{who} writes {regions.element(raw)}: inputs are read-only, write to an output"
    elif raw.kind == 5:
        message = _divergent(raw, signature)
    elif raw.kind == 6:
        message = f"threadgroup variables need {raw.count} bytes, but Metal has 32768; use smaller tiles"
    elif raw.kind == 7:
        message = "a lane that does not take part is read, or is missing from a matrix operation"
    elif raw.kind == 8:
        message = f"{who} uses index {ctypes.c_int64(raw.count).value}, which the array's type does not have"
    elif raw.kind == 9:
        message = f"{who} divides an integer by zero"
    elif raw.kind == 10:
        message = f"{who}: the launch made more accesses than access_limit allows; is a loop endless?"
    else:
        message = f"{who} {_verb(raw.now)} {raw.bytes} bytes at an address that is no multiple of {raw.bytes}"
    return Finding(kind, message, place.where, place.line, place.code)
