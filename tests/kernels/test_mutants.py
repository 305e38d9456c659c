"""Every kernel with something taken away: the proof machine must notice.

The sample takes one mutant of each kind from each kernel; `pytest -m long` takes all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import proof
import pytest
from kernels.proven import Proven, machine_kernel, parse_findings
from proof.mutate import Mutant, with_wrong_flags, without_each_barrier, without_each_qualifier

from dsv4_mlx.kernels import ALL
from dsv4_mlx.kernels.launch import Kernel, Launch

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
        text = {self.part: self.mutant.text}
        return replace(launch, kernel=replace(launch.kernel, **text))

    def __str__(self) -> str:
        return f"{self.kernel.name} {self.part} {self.mutant.change}"


@cache
def launches() -> dict[str, list[Launch]]:
    """Launches of each kernel that its cases make, one for each text, those with the most threads first."""
    found: dict[str, dict[object, Launch]] = {}
    for op in ALL:
        for case in op.cases():
            machine = Proven(check=False)
            op.call(machine, *case.arguments, **case.options)
            for launch in machine.launches:
                found.setdefault(launch.kernel.name, {}).setdefault(launch.template, launch)
    return {name: sorted(made.values(), key=_threads, reverse=True) for name, made in found.items()}


def _threads(launch: Launch) -> int:
    return launch.grid[0] * launch.grid[1] * launch.grid[2]


def mutants(kind: str) -> list[Broken]:
    """Of every kernel; a header's mutants once for each kernel that has it."""
    return [
        Broken(made[0].kernel, kind, part, mutant)
        for made in launches().values()
        for part in ("source", "header")
        for mutant in KINDS[kind](getattr(made[0].kernel, part))
    ]


def sample_of(kind: str) -> list[Broken]:
    """The first of each kernel's body, or of its header where the body has none."""
    found: dict[str, Broken] = {}
    for broken in mutants(kind):
        found.setdefault(broken.kernel.name, broken)
    return list(found.values())


def noticed(broken: Broken) -> bool:
    """By the parse pass, or by the checker in one of the kernel's launches.

    Without a qualifier the text may still be legal, such as an array that has become each thread's own: then
    the results must be wrong.
    """
    made = launches()[broken.kernel.name]
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


@pytest.mark.parametrize("kind", KINDS)
def test_sample(kind: str) -> None:
    missed = [str(broken) for broken in sample_of(kind) if not noticed(broken)]
    assert not missed, "\n".join(missed)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_all(kind: str) -> None:
    found = mutants(kind)
    missed = [str(broken) for broken in found if not noticed(broken)]
    assert not missed, f"{len(missed)} of {len(found)} unnoticed:\n" + "\n".join(missed)
