"""The machine proves itself: every mistake planted in its own kernels is noticed.

The sample here takes one mutant of each kind and kernel; `pytest -m long` takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from metal_proof import parse
from metal_proof.mutate import (
    Mutant,
    with_each,
    with_wrong_flags,
    without_each_barrier,
    without_each_qualifier,
)
from metal_proof.selfproof import CASES, Case


@dataclass(frozen=True)
class Broken:
    name: str
    part: str
    mutant: Mutant

    def case(self) -> Case:
        kernel = CASES[self.name]().kernel
        texts = {"source": kernel.source, "header": kernel.header, self.part: self.mutant.text}
        return CASES[self.name]().with_text(**texts)

    def __str__(self) -> str:
        return f"{self.name} {self.part} {self.mutant.change}"


def every(mutate: Callable[[str], Iterator[Mutant]]) -> list[Broken]:
    return [
        Broken(name, part, mutant)
        for name, make in CASES.items()
        for part in ("source", "header")
        for mutant in mutate(getattr(make().kernel, part))
    ]


def sample_of(all_of_them: list[Broken]) -> list[Broken]:
    """The last of each kernel."""
    return list({broken.name: broken for broken in all_of_them}.values())


# Loop bounds and guards one too far, in the words of the kernels themselves.
OFF_BY_ONE = [
    ("row_sum", "source", r"i < columns", "i <= columns"),
    ("row_sum", "source", r"\+ row \* columns", "+ (row + 1) * columns"),
    ("row_sum", "header", r"lane < simdgroups", "lane <= simdgroups"),
    ("softmax", "source", r"i < columns", "i <= columns"),
    ("softmax", "header", r"i < count", "i <= count"),
    ("softmax", "header", r"lane < simdgroups", "lane <= simdgroups"),
    ("mxfp4_matvec", "source", r"row < rows", "row <= rows"),
    ("mxfp4_matvec", "source", r"i < count", "i <= count"),
    ("mxfp4_matvec", "source", r"start < columns", "start <= columns"),
    ("mxfp4_matvec", "header", r"i < 8", "i <= 8"),
    ("mxfp4_matvec", "header", r"i < count", "i <= count"),
    ("tiled_product", "source", r"r < rows", "r <= rows"),
    ("tiled_product", "source", r"col < columns", "col <= columns"),
    ("tiled_product", "source", r"part < TILE", "part <= TILE"),
    ("tiled_product", "source", r"i < 64", "i <= 64"),
    ("tiled_product", "header", r"r < rows", "r <= rows"),
    ("tiled_product", "header", r"c < columns", "c <= columns"),
    ("tiled_product", "header", r"i < TILE", "i <= TILE"),
    ("histogram", "source", r"bin < 256", "bin <= 256"),
    ("histogram", "source", r"i < count", "i <= count"),
]


def off_by_one() -> list[Broken]:
    return [
        Broken(name, part, mutant)
        for name, part, pattern, replacement in OFF_BY_ONE
        for mutant in with_each(getattr(CASES[name]().kernel, part), pattern, replacement)
    ]


def divergent() -> list[Broken]:
    """Each barrier left to the first seven threads."""
    guard = r"if (simd_prefix_inclusive_sum(1) < 8) \g<0>"
    return every(lambda text: with_each(text, r"\b\w+_barrier\([^;]*;", guard))


BARRIERS = every(without_each_barrier)
FLAGS = every(with_wrong_flags)
QUALIFIERS = every(without_each_qualifier)
BOUNDS = off_by_one()
DIVERGENT = divergent()

# Mutants after which the kernel is still right, and why. They must stay unnoticed.
HARMLESS = {
    "mxfp4_matvec source line 11: `start < columns` -> `start <= columns`": (
        "one more tile at most, of min(CHUNK, columns - columns) = 0 values, in every thread alike"
    ),
}


def notice(broken: Broken) -> list[str]:
    """The kinds of the checker's findings; "wrong" if there is none but the result is."""
    case = broken.case()
    result = case.run()
    kinds = [finding.kind for finding in result.findings]
    return kinds or ([] if case.right(result) else ["wrong"])


def check_all(mutants: list[Broken], expected: set[str]) -> None:
    missed = []
    for broken in mutants:
        kinds = notice(broken)
        if str(broken) in HARMLESS:
            assert kinds == [], f"{broken} is said to be harmless ({HARMLESS[str(broken)]}): {kinds}"
        elif not set(kinds) & expected:
            missed.append(f"{broken}: {kinds}")
    assert not missed, f"{len(missed)} of {len(mutants)} missed:\n" + "\n".join(missed)


def check_parse(mutants: list[Broken]) -> None:
    missed = []
    for broken in mutants:
        case = broken.case()
        if not parse(case.kernel, case.inputs, output_dtypes=[case.output_dtype], template=case.template):
            missed.append(str(broken))
    assert not missed, f"{len(missed)} of {len(mutants)} accepted:\n" + "\n".join(missed)


def test_there_is_something_to_break() -> None:
    counts = [len(kind) for kind in (BARRIERS, FLAGS, QUALIFIERS, BOUNDS, DIVERGENT)]
    assert counts == [10, 20, 25, 23, 10], counts


def test_sample_of_deleted_barriers() -> None:
    check_all(sample_of(BARRIERS), {"race", "uninitialised-read"})


def test_sample_of_wrong_flags() -> None:
    check_all(sample_of(FLAGS), {"race"})


def test_sample_of_off_by_one_bounds() -> None:
    check_all(sample_of(BOUNDS), {"out-of-bounds", "race", "uninitialised-read", "wrong"})


def test_sample_of_divergent_barriers() -> None:
    check_all(sample_of(DIVERGENT), {"divergent-barrier"})


def test_sample_of_deleted_qualifiers() -> None:
    check_parse(sample_of(QUALIFIERS))


@pytest.mark.long
def test_every_deleted_barrier() -> None:
    check_all(BARRIERS, {"race", "uninitialised-read"})


@pytest.mark.long
def test_every_wrong_flag() -> None:
    check_all(FLAGS, {"race"})


@pytest.mark.long
def test_every_off_by_one_bound() -> None:
    check_all(BOUNDS, {"out-of-bounds", "race", "uninitialised-read", "wrong"})


@pytest.mark.long
def test_every_divergent_barrier() -> None:
    check_all(DIVERGENT, {"divergent-barrier"})


@pytest.mark.long
def test_every_deleted_qualifier() -> None:
    check_parse(QUALIFIERS)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_too_much_threadgroup_memory(name: str) -> None:
    """Each kernel with its first threadgroup variable made larger than Metal has room for."""
    kernel = CASES[name]().kernel
    mutant = next(with_each(kernel.source, r"(threadgroup \w+ \w+)\[[^\]]*\]", r"\1[32769]"))
    assert notice(Broken(name, "source", mutant)) == ["threadgroup-memory"]
