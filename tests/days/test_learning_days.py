"""Orderings that learn while the day goes on: both engines tell them the same, so both days are the same."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from headway.scheduling.bundle import bundle
from headway.simulator.reference import simulate_reference
from headway.simulator.replica import replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

SERVER = replica("l4", "llama-3.1-8b")


def traffic(count: int) -> Trace:
    random = np.random.default_rng(1)
    long = random.random(count) < 0.2
    return Trace(
        name="mixed",
        arrived_seconds=np.cumsum(random.exponential(0.25, count)),
        prompt_tokens=np.where(long, random.integers(2_000, 7_000, count), random.integers(20, 300, count)),
        output_tokens=random.integers(1, 80, count),
    )


@pytest.mark.parametrize(
    ("ordering", "options"),
    [
        ("ewsjf", {"overdue_seconds": 10.0}),
        ("ewsjf", {"fill": "score", "b_f": 0.1, "a_u": 1e-4, "feature": "kv-volume"}),
        ("ewsjf-published", {}),
        ("ewsjf-authors", {}),
        ("fair-share/ewsjf", {}),
    ],
    ids=str,
)
def test_the_engines_agree_while_lanes_are_learned(ordering: str, options: dict[str, object]) -> None:
    """600 requests: two partitions, some refits, at more load than the replica can serve."""
    trace = traffic(600)
    days = []
    for engine in (simulate, simulate_reference):
        policies = bundle(ordering=ordering, options={"ordering": options}, costs=SERVER.costs, seed=0)
        days.append(engine(trace, SERVER.rules, SERVER.step_time, policies))
    for column in fields(days[0]):
        if column.name in ("admitted_ps", "first_token_ps", "ended_ps", "preemptions", "makespan_ps", "steps"):
            assert np.array_equal(getattr(days[0], column.name), getattr(days[1], column.name)), column.name
    waits = days[0].admitted_ps - days[0].arrived_ps
    assert waits.max() > 5_000_000_000_000, "no request waited, so no order was tried"
