"""The slot protocol: every order of events at small sizes, and each rule broken once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations

import pytest

from bench.paging.rejected import LruPolicy
from dsv4_mlx.paging.expert_run import ExpertRun
from dsv4_mlx.paging.slots import SlotTable

EXPERTS = 3
NEEDS = [need for size in (1, 2, 3) for need in combinations(range(EXPERTS), size)]


@dataclass
class World:
    """A bank as it really is, beside what the table believes: `bytes[slot]` is an expert, or None if torn."""

    table: SlotTable
    policy: LruPolicy
    bytes: list[int | None]
    reads: list[int] = field(default_factory=list)  # experts being read
    queued: list[tuple[int, int]] = field(default_factory=list)  # (slot, expert) of work not known as done
    turn: ExpertRun | None = None
    computed: list[int] = field(default_factory=list)
    turns: int = 0
    failures: int = 0

    def begin(self, expert: int) -> None:
        """A reader starts to write: nothing that may still run reads this slot."""
        slot = self.table.slot_of[expert]
        assert all(slot != busy for busy, _ in self.queued), "a slot is written while work may read it"
        assert expert not in self.reads
        self.bytes[slot] = None
        self.reads.append(expert)

    def end(self, expert: int, ok: bool) -> None:
        self.reads.remove(expert)
        if ok:
            self.bytes[self.table.slot_of[expert]] = expert
            self.table.filled(expert)
        else:
            self.table.failed(expert)
            if self.turn is not None and (expert in self.turn.early or expert in self.turn.misses):
                self.turn.again(expert)

    def drive(self, worth: int) -> bool:
        """What the driver does next; False where it can only wait for a reader."""
        assert self.turn is not None
        begun = self.turn.reads()
        for expert in begun:
            self.begin(expert)
        group = self.turn.group(worth)
        if group:
            self.table.use(group)
            for expert in group:
                slot = self.table.slot_of[expert]
                assert self.bytes[slot] == expert, "computed with bytes that are not the expert's"
                self.queued.append((slot, expert))
                self.computed.append(expert)
        finishes = self.turn.blocked and bool(self.queued) and (bool(group) or not self.turn.reading)
        if finishes:
            self.finish()
        return bool(begun or group or finishes)

    def finish(self) -> None:
        """Queued work is computed and known to be."""
        self.queued.clear()
        self.table.finish(self.table.epoch)

    def key(self) -> tuple[object, ...]:
        turn = self.turn
        return (
            tuple(self.bytes), tuple(self.reads), tuple(sorted(set(self.queued))),
            tuple(self.table.expert_of), tuple(self.table.slot_of), tuple(self.table._ready),
            tuple(used > self.table.finished for used in self.table._used), tuple(self.table._free),
            tuple(sorted(range(EXPERTS), key=self.policy._used.__getitem__)),
            self.turns, self.failures, tuple(sorted(self.computed)),
            None if turn is None else (tuple(turn._unread), tuple(sorted(turn._waiting)), turn._began),
        )  # fmt: skip


def successors(world: World, turns: int, worth: int) -> Iterator[World]:
    """Every event that can come next."""
    for expert in world.reads:
        for ok in (True, False) if world.failures < 1 else (True,):
            after = copy.deepcopy(world)
            after.failures += not ok
            after.end(expert, ok)
            yield after
    if world.turn is None:
        if world.turns < turns:
            if world.queued:
                after = copy.deepcopy(world)
                after.finish()
                yield after
            for need in NEEDS:
                after = copy.deepcopy(world)
                after.turn = ExpertRun(after.table, after.policy, need)
                after.turns, after.computed = world.turns + 1, []
                yield after
            for expert in range(EXPERTS):  # advice between two runs
                if world.table.slot_of[expert] < 0:
                    after = copy.deepcopy(world)
                    candidates = after.table.loaded(besides={expert})
                    if not after.table.free and not candidates:
                        continue
                    after.table.claim(expert, None if after.table.free else after.policy.victim(candidates))
                    after.begin(expert)
                    yield after
        return
    after = copy.deepcopy(world)
    if after.drive(worth):
        assert after.turn is not None
        if after.turn.done:
            after.turn = None
        yield after


@pytest.mark.parametrize(("slots", "worth", "turns"), [(1, 1, 3), (2, 1, 2), (2, 2, 2), (3, 2, 2)])
def test_every_order_of_events(slots: int, worth: int, turns: int) -> None:
    """No slot is written under work, none is computed with half written, and no run stands still."""
    start = World(SlotTable(slots, EXPERTS), LruPolicy(EXPERTS), [None] * slots)
    seen, stack = {start.key()}, [start]
    finished = 0
    while stack:
        world = stack.pop()
        following = list(successors(world, turns, worth))
        if world.turn is not None:
            assert following, "a run waits and nothing can happen"
        elif world.turns and world.computed:
            assert len(set(world.computed)) == len(world.computed), "an expert was computed with twice"
            finished += 1
        for after in following:
            if (key := after.key()) not in seen:
                seen.add(key)
                stack.append(after)
    assert finished > 100
    assert len(seen) > 1000


def table(*experts: int, slots: int = 2) -> SlotTable:
    """A table with these experts loaded."""
    made = SlotTable(slots, EXPERTS)
    for expert in experts:
        made.claim(expert)
        made.filled(expert)
    return made


def test_a_slot_is_not_claimed_while_work_reads_it() -> None:
    made = table(0, 1)
    epoch = made.use([0])
    assert made.loaded() == [1]
    with pytest.raises(RuntimeError, match="not finished"):
        made.claim(2, 0)
    made.finish(epoch)
    assert made.claim(2, 0) == 0


def test_rules_are_checked() -> None:
    made = table(0)
    for wrong, message in (
        (lambda: made.claim(0), "has a slot already"),
        (lambda: made.use([1]), "not loaded"),
        (lambda: made.filled(0), "not being read"),
        (lambda: made.failed(2), "not being read"),
        (lambda: made.claim(1, 2), "can't be given up"),
        (lambda: made.finish(9), "has not begun"),
    ):
        with pytest.raises(RuntimeError, match=message):
            wrong()
    made.claim(1)
    with pytest.raises(RuntimeError, match="not loaded"):
        made.use([1])
    with pytest.raises(RuntimeError, match="no slot is empty"):
        made.claim(2)


def test_a_failed_read_gives_its_slot_back() -> None:
    made = table(0)
    made.claim(1)
    made.failed(1)
    assert made.free == 1
    assert made.claim(2) == 1
