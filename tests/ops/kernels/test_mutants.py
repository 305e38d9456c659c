"""Every kernel with something taken away: the emulator must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import metal_proof as proof
import pytest
from metal_proof.mutate import (
    Mutant,
    with_each,
    with_wrong_flags,
    without_each_barrier,
    without_each_qualifier,
)
from ops.kernels.proven import Proven, machine_kernel, parse_findings

from dsv4_mlx.ops.kernels import ALL, index_select
from dsv4_mlx.ops.kernels.launch import Kernel, Launch
from dsv4_mlx.ops.kernels.op import KernelOp

# Bounds one too far, by kernel, in the words of the kernels themselves.
GUARDS = [
    ("attend", "source", r"h < heads", "h <= heads"),
    ("attend", "source", r"n < count", "n <= count"),
    ("attend", "source", r"at < count \?", "at <= count ?"),
    ("attend", "source", r"at < near\)", "at <= near)"),
    ("attend", "source", r"n >= near", "n > near"),
    ("attend", "source", r"step < steps", "step <= steps"),
    ("attend", "source", r"head >= heads", "head > heads"),
    ("attend_join", "source", r"split < splits", "split <= splits"),
    ("index_select_scores", "source", r"n < count(?= &&)", "n <= count"),
    ("index_select_scores", "source", r"&& n < count\)", "&& n <= count)"),
    ("index_select_best", "source", r"n < total", "n <= total"),
    ("index_select_best", "source", r"same < left", "same <= left"),
    ("index_select_best", "source", r"before < left", "before <= left"),
    ("group_project_rows", "source", r"first \+ i < rank", "first + i <= rank"),
    ("group_project_rows", "header", r"block < blocks", "block <= blocks"),
    ("group_project_tiles", "source", r"channel \+ j < rank", "channel + j <= rank"),
    ("group_project_tiles", "source", r"row < valid", "row <= valid"),
    ("group_project_tiles", "header", r"row < valid", "row <= valid"),
    ("group_project_tiles", "source", r"block < width / 32", "block <= width / 32"),
    ("expert_ffn_gate_up", "header", r"block < blocks", "block <= blocks"),
    ("expert_ffn_down", "source", r"a < chosen", "a <= chosen"),
    ("expert_ffn_order", "source", r"p < pairs(?=;)", "p <= pairs"),
    ("expert_ffn_order", "source", r"i \* 32 < counts\[e\]", "i * 32 <= counts[e]"),
    ("expert_ffn_order", "source", r"tile < uint", "tile <= uint"),
    ("expert_ffn_sorted_gate_up", "source", r"row < valid", "row <= valid"),
    ("expert_ffn_sorted_down", "source", r"block < blocks", "block <= blocks"),
    ("expert_ffn_sum", "source", r"a < chosen", "a <= chosen"),
]

SAMPLE = index_select.OP
KINDS: dict[str, Callable[[str], Iterator[Mutant]]] = {
    "barrier": without_each_barrier,
    "flags": with_wrong_flags,
    "qualifier": without_each_qualifier,
}


@dataclass(frozen=True)
class Broken:
    kernel: Kernel
    kind: str
    part: str
    mutant: Mutant

    def on(self, launch: Launch) -> Launch:
        kernel = launch.kernel
        if self.part == "header":
            return replace(launch, kernel=replace(kernel, header=self.mutant.text))
        return replace(launch, kernel=replace(kernel, source=self.mutant.text))

    def __str__(self) -> str:
        return f"{self.kernel.name} {self.part} {self.mutant.change}"


@cache
def made_by(op: KernelOp) -> dict[str, list[Launch]]:
    """Launches of each kernel that an op's cases make, one for each text and shape, the largest first."""
    found: dict[str, dict[object, Launch]] = {}
    for case in op.cases():
        machine = Proven(schedules=1)
        op.call(machine, *case.arguments, **case.options)
        for launch in machine.launches:
            found.setdefault(launch.kernel.name, {}).setdefault((launch.template, launch.shapes), launch)
    return {name: sorted(made.values(), key=_threads, reverse=True) for name, made in found.items()}


def launches(kernel: str) -> list[Launch]:
    return next(made_by(op)[kernel] for op in ALL if kernel in made_by(op))


def _threads(launch: Launch) -> int:
    return launch.grid[0] * launch.grid[1] * launch.grid[2]


def mutants(kind: str, ops: Sequence[KernelOp] = ALL) -> list[Broken]:
    """Of every kernel; a header's mutants once for each kernel that has it."""
    return [
        Broken(made[0].kernel, kind, part, mutant)
        for op in ops
        for made in made_by(op).values()
        for part in ("source", "header")
        for mutant in KINDS[kind](getattr(made[0].kernel, part))
    ]


def noticed(broken: Broken) -> bool:
    """By the parse pass, or by the checker in one of the kernel's launches.

    Without a qualifier the text may still be legal, such as an array that has become each thread's own: then
    the results must be wrong.
    """
    made = launches(broken.kernel.name)
    if broken.kind == "qualifier":
        return any(parse_findings(broken.on(launch)) for launch in made) or any(
            differs(launch, broken.on(launch)) for launch in made
        )
    return any(judged(broken.on(launch)).findings for launch in made)


def judged(launch: Launch) -> proof.Result:
    return proof.run(
        machine_kernel(launch), [proof.from_mlx(array) for array in launch.inputs],
        grid=launch.grid, threadgroup=launch.threadgroup, output_shapes=launch.shapes,
        output_dtypes=launch.dtypes, template=launch.template, schedules=3,
        ensure_row_contiguous=not launch.kernel.strided,
    )  # fmt: skip


def differs(launch: Launch, broken: Launch) -> bool:
    sound, found = judged(launch), judged(broken)
    outputs = range(len(sound.outputs))
    return bool(found.findings) or any(
        found.values(i).tobytes() != sound.values(i).tobytes() for i in outputs
    )


@pytest.mark.long
@pytest.mark.parametrize(("name", "part", "pattern", "wider"), GUARDS)
def test_a_bound_one_too_far(name: str, part: str, pattern: str, wider: str) -> None:
    made = launches(name)
    broken = [
        Broken(made[0].kernel, "guard", part, mutant)
        for mutant in with_each(getattr(made[0].kernel, part), pattern, wider)
    ]
    assert broken
    for mutant in broken:
        assert any(differs(launch, mutant.on(launch)) for launch in made), str(mutant)


def test_sample() -> None:
    """The first barrier of each kernel of one op; `pytest -m long` takes all of everything."""
    sample = {broken.kernel.name: broken for broken in reversed(mutants("barrier", [SAMPLE]))}
    assert len(sample) == 2
    missed = [str(broken) for broken in sample.values() if not noticed(broken)]
    assert not missed, "\n".join(missed)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_all(kind: str) -> None:
    """A header's mutant must be noticed in one of the kernels that have it: others may not call that part."""
    same: dict[tuple[str, str], list[Broken]] = {}
    for broken in mutants(kind):
        place = "" if broken.part == "header" else broken.kernel.name
        same.setdefault((place, broken.mutant.text), []).append(broken)
    missed = [str(group[0]) for group in same.values() if not any(map(noticed, group))]
    assert not missed, f"{len(missed)} of {len(same)} unnoticed:\n" + "\n".join(missed)
