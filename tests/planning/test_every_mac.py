"""What `plan` prints opens with that command on that Mac: every release as published and in every recipe.

Nothing is on disk or in memory. The Macs' chips don't matter here: memory and what the GPU may use of it do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import mlx.core as mx
import pytest
from blank import BlankArrays, BlankSlots, blank_model
from engine.pretend_mac import PretendMac

from dsv4_mlx.checkpoint.manifest import OFFICIAL
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.engine.engine import fitting, weight_bytes
from dsv4_mlx.engine.memory import state_bytes, workspace
from dsv4_mlx.errors import DoesNotFit
from dsv4_mlx.machine import limits
from dsv4_mlx.machine.macs import MACS as KNOWN
from dsv4_mlx.machine.macs import default_gpu_limit, highest_gpu_limit
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.paging.sizing import ExpertMemory
from dsv4_mlx.planning.candidates import Candidate, candidates
from dsv4_mlx.planning.fit import MemoryBudget, budget_of_mac
from dsv4_mlx.planning.plan import plan
from dsv4_mlx.planning.speed import Speeds
from dsv4_mlx.synthetic.configs import Release
from dsv4_mlx.weights.load import assemble

RELEASES: tuple[Release, ...] = ("flash", "0731", "base", "pro")
STORED = (OFFICIAL, *RECIPES)
GIB = 1 << 30


SIZES = {24, 32, 36, 48, 64, 96, 128, 192, 256, 512} | {mac.gib for mac in KNOWN}


@dataclass(frozen=True)
class Limits:
    """Of a Mac with `memory` bytes: what its GPU may use, and whether its user chose that (`macos`: what it
    runs)."""

    memory: int
    working_set: int
    raised: bool = False
    macos: int = 15

    @property
    def budget(self) -> MemoryBudget:
        return budget_of_mac(self.memory, self.macos, self.working_set)


def macs() -> list[Limits]:
    """With macOS 14 or 15, with macOS 26, and with the limit raised by hand."""
    found = set()
    for memory in (gib * GIB for gib in SIZES):
        found |= {Limits(memory, default_gpu_limit(memory, macos), False, macos) for macos in (15, 26)}
        found |= {Limits(memory, limit, True) for limit in (highest_gpu_limit(memory), memory - 4 * GIB)}
    return sorted(found, key=lambda mac: (mac.memory, mac.working_set, mac.macos))


MACS = macs()


@cache
def ways_of(release: Release) -> list[Candidate]:
    return candidates(blank_model(release, OFFICIAL).config)


def printed(release: Release, stored: str, mac: Limits) -> tuple[int, str] | None:
    """--context and --expert-memory of the command that runs it; None where there is none."""
    config = blank_model(release, stored).config
    options = plan(ways_of(release), config, mac.budget, Speeds()).options
    words = next(option.commands for option in options if option.name == stored)[-1].split()
    if words[:2] != ["dsv4-mlx", "chat"]:
        return None
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given.keys() <= {"--context", "--expert-memory"}
    return int(given["--context"]), given.get("--expert-memory", "auto")


def opened(
    release: Release, stored: str, mac: Limits, context: int | None, expert_memory: str
) -> tuple[int, ExpertMemory] | None:
    """Context and experts as the engine has them there; None where it refuses. What it has fits."""
    model = blank_model(release, stored)
    with pytest.MonkeyPatch.context() as patch:
        PretendMac(mac.memory, mac.working_set).install(patch)
        patch.setattr(limits, "_sysctl", lambda name: mac.working_set >> 20 if mac.raised else 0)
        patch.setattr("platform.mac_ver", lambda: (f"{mac.macos}.1", ("", "", ""), "arm64"))
        try:
            length, memory = fitting(model.config, model.manifest, context, expert_memory)
        except DoesNotFit as error:
            assert "GB" in str(error) and "next: " in str(error)
            return None
    others = weight_bytes(model.manifest) - sum(model.expert_bytes().values())
    weights = others + memory.experts.bytes(memory.slots)
    state = state_bytes(model.config, length, 2).session
    assert weights + state + workspace(min(weights, mac.working_set)) <= mac.budget.limit
    assert mac.budget.limit <= mac.memory * (0.65 if mac.memory < 48 * GIB else 0.85), "what wiring holds"
    assert 1 <= memory.slots <= model.config.experts
    return length, memory


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("release", RELEASES)
def test_what_is_printed_opens(release: Release, stored: str) -> None:
    placements = []
    for mac in MACS:
        command = printed(release, stored, mac)
        if command is None:
            placements.append(0)
            assert opened(release, stored, mac, 16_384, "1x") is None
            continue
        found = opened(release, stored, mac, *command)
        assert found is not None, f"{command} on {mac}"
        context, memory = found
        assert context == command[0]
        placements.append(memory.slots)
        assert memory.resident == (command[1] == "auto")
        assert command[1] in ("auto", f"{memory.slots}x")
        with_auto = opened(release, stored, mac, context, "auto")
        assert with_auto is not None and with_auto[1].slots == memory.slots, "plan and auto agree"
    assert placements[-1] > 0, "it runs on the largest"


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("release", RELEASES)
def test_every_amount(release: Release, stored: str) -> None:
    """auto is the most that opens, but for what it leaves to the page cache: an amount opens if and only if
    it isn't more."""
    count = blank_model(release, stored).config.experts
    for mac in MACS:
        most = opened(release, stored, mac, None, "auto")
        for asked, slots in (("1x", 1), ("50%", count // 2), ("100%", count)):
            found = opened(release, stored, mac, None, asked)
            if most is not None and slots > most[1].slots and mac.budget.reserve:
                continue
            assert (found is not None) == (most is not None and slots <= most[1].slots), f"{asked} on {mac}"
            if found is not None and most is not None:
                assert found[1].slots == slots and found[0] == most[0]


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("release", RELEASES)
def test_builds_up_to_evaluation(release: Release, stored: str) -> None:
    """All layers of the model, with all experts and with each number of slots that a Mac has, as views."""
    model, before = blank_model(release, stored), mx.get_active_memory()
    built = assemble(model, BlankArrays(model), REFERENCE, EXACT)
    assert len(built.blocks) == model.config.layers
    found = (opened(release, stored, mac, None, "auto") for mac in MACS)
    for slots in {one[1].slots for one in found if one is not None}:
        for block, table in model.manifest.experts.items():
            records = model.record_map(block)
            experts = BlankSlots(slots, mx.bfloat16)(block, records, lambda chunk, *banks: chunk.x)
            assert experts.down.codes.shape[:2] == (slots, model.config.hidden_size)
            assert experts.gate_up.codes.shape[:2] == (slots, 2 * model.config.expert_width)
            assert experts.gate_up.mode == table.format.replace("affine4", "affine")
    assert mx.get_active_memory() - before < 300e6


@pytest.mark.parametrize(
    ("memory", "working_set", "slots"),
    [(128, 96, range(150, 165)), (192, 144, range(240, 252)), (256, 192, range(256, 257))],
)
def test_the_table_has_known_rows(memory: int, working_set: int, slots: range) -> None:
    """V4-Flash, native: what was computed for these Macs by hand."""
    mac = next(mac for mac in MACS if (mac.memory, mac.working_set) == (memory * GIB, working_set * GIB))
    found = opened("flash", "native", mac, 16_384, "auto")
    assert found is not None and found[1].slots in slots
