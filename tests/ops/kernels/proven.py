"""The launcher of machines without Metal: the emulator executes every launch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import metal_proof as proof
import mlx.core as mx

from dsv4_mlx.ops.kernels.launch import Launch


@dataclass
class Proven:
    """Runs launches, with every access judged (`check`) or only executed, and may remember what they were.

    A checked launch fails with everything the emulator found.
    """

    check: bool = True
    schedules: int = 3
    remember: bool = True
    numerics: proof.Numerics = proof.Numerics()  # of its floats
    ran: set[str] = field(default_factory=set)  # names of kernels
    launches: list[Launch] = field(default_factory=list)
    results: list[proof.Result] = field(default_factory=list)

    def __call__(self, launch: Launch) -> Sequence[mx.array]:
        mx.eval(launch.inputs)
        result = proof.run(
            machine_kernel(launch),
            [proof.from_mlx(array) for array in launch.inputs],
            grid=launch.grid,
            threadgroup=launch.threadgroup,
            output_shapes=launch.shapes,
            output_dtypes=launch.dtypes,
            template=launch.template,
            ensure_row_contiguous=not launch.kernel.strided,
            check=self.check,
            schedules=self.schedules if self.check else 1,
            numerics=self.numerics,
        ).raise_findings()
        assert not result.differs, f"{launch.kernel.name}: {result.differs} depend on the schedule"
        self.ran.add(launch.kernel.name)
        if self.remember:
            self.launches.append(launch)
            self.results.append(result)
        return [proof.to_mlx(array) for array in result.outputs]


def machine_kernel(launch: Launch) -> proof.Kernel:
    """A launch's kernel as the emulator takes it."""
    kernel = launch.kernel
    return proof.Kernel(kernel.name, kernel.source, kernel.header, kernel.inputs, kernel.outputs)


def parse_findings(launch: Launch) -> list[proof.Finding]:
    """What Metal's compiler would refuse about the kernel of this call."""
    return proof.parse(
        machine_kernel(launch),
        [proof.from_mlx(array) for array in launch.inputs],
        output_dtypes=list(launch.dtypes),
        template=launch.template,
    )


def check_bytes(launch: Launch, result: proof.Result) -> None:
    """The wrapper's byte formula within 1% of the distinct bytes that the machine saw."""
    pairs = {**launch.loaded()}, result.loaded_bytes
    for name, told in pairs[0].items():
        seen = pairs[1].get(name, 0)
        assert abs(told - seen) <= 0.01 * max(seen, 1), (
            f"{launch.kernel.name}: {name} {told} told, {seen} loaded"
        )
    for name, told in launch.stored().items():
        unwritten = result.unwritten_bytes[name]
        assert result.stored_bytes[name] == told and not unwritten, f"{name}: {unwritten} bytes not written"
