"""Who runs next and who comes in next."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dsv4_mlx.scheduler.admission import OVERTAKEN, FairShare, Waiting


def test_time_is_shared_equally_whatever_a_step_costs() -> None:
    """A prefill chunk of 2 s beside tokens of 0.05 s."""
    shares: FairShare[str] = FairShare()
    costs = {"prefill": 2.0, "a": 0.05, "b": 0.05}
    for key in costs:
        shares.add(key)
    spent = dict.fromkeys(costs, 0.0)
    for _ in range(400):
        key = shares.next(costs)
        shares.charge(key, costs[key])
        spent[key] += costs[key]
    assert max(spent.values()) - min(spent.values()) <= 2.0


def test_a_newcomer_runs_at_once_and_takes_nothing_back() -> None:
    shares: FairShare[str] = FairShare()
    shares.add("long")
    shares.charge("long", 100.0)
    shares.add("new")
    assert shares.next({"long", "new"}) == "long", "level: the first that came"
    shares.charge("long", 2.0)
    order = []
    for _ in range(40):
        key = shares.next({"long", "new"})
        order.append(key)
        shares.charge(key, 1.0)
    assert order[0] == "new" and abs(order.count("new") - order.count("long")) <= 2


def test_one_that_is_not_ready_is_passed_over() -> None:
    shares: FairShare[str] = FairShare()
    shares.add("paused")
    shares.add("ready")
    shares.charge("ready", 5.0)
    assert shares.next({"ready"}) == "ready"


def test_clients_take_turns() -> None:
    waiting: Waiting[int] = Waiting()
    for key, hint in enumerate("aaab"):
        waiting.add(key, hint)
    assert waiting.admit(["a"], lambda _: True) == 3
    assert waiting.admit([], lambda _: True) == 0


def test_what_does_not_fit_is_passed_over_but_not_for_ever() -> None:
    waiting: Waiting[int] = Waiting()
    waiting.add(-1, "")
    for key in range(OVERTAKEN + 5):
        waiting.add(key, "")
    came = [waiting.admit([], lambda key: key >= 0) for _ in range(OVERTAKEN)]
    assert waiting.admit([], lambda key: key >= 0) is None
    assert came == list(range(OVERTAKEN)), "then it is the large one's turn"
    assert waiting.admit([], lambda key: True) == -1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=60))
def test_everybody_comes_in_once(arrivals: list[tuple[str, bool]]) -> None:
    waiting: Waiting[int] = Waiting()
    came: list[int] = []
    for key, (hint, admits) in enumerate(arrivals):
        waiting.add(key, hint)
        if admits:
            found = waiting.admit(["a", "b"], lambda key: key % 3 != 0)
            came += [] if found is None else [found]
    while len(waiting):
        last = waiting.admit([], lambda key: True)
        assert last is not None
        came.append(last)
    assert sorted(came) == list(range(len(arrivals))) and len(waiting) == 0
