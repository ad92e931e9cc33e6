"""The doubling policies for unknown lengths serve their regime, and are right by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.bounds.discrete import Attempt, DiscreteRequest, Instance, lower_bound, replay
from headway.bounds.doubling import peak_of_staggered, rect, response, route, staggered_most
from tests.support.bound_instances import instances


@given(instances())
def test_route_serves_anything(instance: Instance) -> None:
    assert replay(instance, route(instance)).total_latency >= lower_bound(instance)


@pytest.mark.parametrize(("regime", "policy"), [("large", rect), ("prompt-heavy", rect), ("response-heavy", response)])
@given(data=st.data())
def test_each_serves_its_regime(regime: str, policy: object, data: st.DataObject) -> None:
    instance = data.draw(instances(arrivals=False, regime=regime, memory=60, most=8))
    attempts = policy(instance)  # type: ignore[operator]
    assert replay(instance, attempts).total_latency >= lower_bound(instance)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 20))
def test_the_staggered_peak_is_what_stepping_finds(count: int, cap: int, prompt: int) -> None:
    starts = [number * cap // count for number in range(4 * count)]
    steps = range(1, starts[-1] + cap + 1)
    peak = max(sum(prompt + step - s for s in starts if s < step <= s + cap) for step in steps)
    assert peak == peak_of_staggered(count, cap, prompt)


@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 20))
def test_the_most_that_can_be_staggered(extra: int, cap: int, prompt: int) -> None:
    memory = prompt + cap + extra
    count = staggered_most(memory, cap, prompt)
    assert peak_of_staggered(count, cap, prompt) <= memory < peak_of_staggered(count + 1, cap, prompt)


def test_the_published_example() -> None:
    assert peak_of_staggered(3, 6, 2) == 18


def test_rect_doubles_its_caps_by_hand() -> None:
    """Two large requests of 1 and 3 tokens: both try one step, the second then two, then four."""
    instance = Instance((DiscreteRequest(5, 1), DiscreteRequest(5, 3)), 8)
    assert rect(instance) == [Attempt(0, 0, 1), Attempt(1, 1, 1), Attempt(1, 2, 2), Attempt(1, 4, 3)]


def test_route_knows_no_output_before_it_shows() -> None:
    """Two instances that differ in one output are served alike until the shorter one ends."""
    short = Instance((DiscreteRequest(2, 6), DiscreteRequest(9, 4), DiscreteRequest(1, 3)), 16)
    long = Instance((DiscreteRequest(2, 9), DiscreteRequest(9, 4), DiscreteRequest(1, 3)), 16)
    one, other = route(short), route(long)
    end = next(a.started + a.steps for a in one if a.place == 0 and a.steps == 6)
    before = [[a for a in attempts if a.started + a.steps < end] for attempts in (one, other)]
    assert before[0] == before[1]
    assert before[0]


@pytest.mark.parametrize(
    ("policy", "requests", "words"),
    [
        (rect, (DiscreteRequest(5, 1), DiscreteRequest(1, 1)), "one regime"),
        (rect, (DiscreteRequest(2, 3),), "response-heavy"),
        (rect, (DiscreteRequest(5, 1, 2),), "burst"),
        (response, (DiscreteRequest(9, 1),), "quarter"),
        (response, (DiscreteRequest(1, 2, 2),), "burst"),
    ],
)
def test_each_says_what_it_cannot_take(policy: object, requests: tuple[DiscreteRequest, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        policy(Instance(requests, 16))  # type: ignore[operator]
