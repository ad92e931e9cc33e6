"""The cost table measures what it says: so many wait all the time, and every order answers the same calls."""

from __future__ import annotations

from benchmarks.cost import decision as cost


def test_as_many_wait_after_every_turn_and_each_call_is_counted() -> None:
    turns: list[None] = []
    counters = cost.measure(40, cost.ORDERS, 15, lambda: turns.append(None))
    assert len(turns) == 15
    assert list(counters) == list(cost.ORDERS)
    for counter in counters.values():
        assert len(counter._scheduler.queue) == 40
        counts = {"arrival": 30, "choice and admission": 15, "cancellation": 15}
        assert {call: len(took) for call, took in counter.took.items()} == counts
    lines = cost.table({40: counters}).splitlines()
    assert len(lines) == 2 + len(cost.CALLS) * len(cost.ORDERS) + 1
    assert all(line.endswith(" 1.0× |") for line in lines if "| fcfs |" in line)
    assert lines[-1].startswith("| heads to choose among |  | 1 ")
