"""HRRN: parity by hand, the stated bound against exact HRRN, and how long a choice stands."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.domain.request import Request, uncached_prefill_tokens
from headway.policies.contracts import LanedOrdering, LaneId
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.scheduling.queue import WaitingQueue

times = st.integers(0, 4_000).map(lambda eighths: eighths / 8)
requests = st.lists(
    st.builds(lambda at, tokens, cached: (at, tokens, min(tokens, cached)), times, st.integers(1, 50_000), st.just(0)),
    min_size=1,
    max_size=30,
)
NOW = 500.0


def as_requests(drawn: list[tuple[float, int, int]]) -> list[Request]:
    return [Request(i, at, tokens, cached_prompt_tokens=cached) for i, (at, tokens, cached) in enumerate(drawn)]


def as_heads(waiting: list[Request]) -> dict[LaneId, Request]:
    """A lane each, so that every request is compared."""
    return dict(enumerate(waiting))


def slope(request: Request, now: float) -> float:
    return (now - request.arrived_at) / uncached_prefill_tokens(request)


def test_it_is_a_laned_ordering() -> None:
    assert isinstance(HighestResponseRatio(), LanedOrdering)


def test_parity_at_waits_in_proportion_to_work() -> None:
    """10,000 tokens after 10 s stand where 1,000 stand after 1 s; a moment later the short one is ahead."""
    long, short = Request("long", 0.0, 10_000), Request("short", 9.0, 1_000)
    heads = {0: short, 1: long}
    policy = HighestResponseRatio()
    assert policy.choose(heads, 9.99) == 1
    assert policy.choose(heads, 10.0) == 1  # a tie: the earlier arrival
    assert policy.choose(heads, 10.01) == 0
    assert policy.next_change(heads, 9.5) == pytest.approx(10.0, abs=1e-9)
    assert policy.next_change(heads, 9.5) <= 10.0
    assert policy.next_change(heads, 10.01) == math.inf  # the short one only draws away


def test_the_cache_and_a_preemption_change_the_work() -> None:
    policy = HighestResponseRatio(lane_width=2.0)
    assert policy.lane(Request(0, 0.0, 100)) == 6
    assert policy.lane(Request(0, 0.0, 10_000, cached_prompt_tokens=9_900)) == 6
    assert policy.lane(Request(0, 0.0, 60, produced_tokens=40)) == 6
    assert policy.lane(Request(0, 0.0, 1)) == 0


def test_tokens_to_compute_again_count_when_heads_are_compared() -> None:
    """10 prompt tokens and 990 to recompute are 1,000 of work: it stands behind 100 that came at the same time."""
    policy = HighestResponseRatio()
    heads = {0: Request("preempted", 0.0, 10, produced_tokens=990), 1: Request("fresh", 0.0, 100)}
    assert policy.choose(heads, 5.0) == 1
    late = {0: heads[0], 1: Request("late", 4.5, 100)}
    assert policy.choose(late, 4.9) == 0
    assert policy.choose(late, 5.01) == 1
    assert policy.next_change(late, 4.9) == pytest.approx(5.0)


def test_no_work_goes_first_by_arrival() -> None:
    queue = WaitingQueue(HighestResponseRatio())
    queue.add(Request("waited long", 0.0, 1))
    queue.add(Request("cached late", 99.0, 500, cached_prompt_tokens=500))
    queue.add(Request("cached early", 98.0, 90_000, cached_prompt_tokens=90_000))
    assert queue.head(100.0).id == "cached early"  # type: ignore[union-attr]
    assert queue.stands_until(100.0) == math.inf
    assert [queue.pop(100.0).id for _ in range(3)] == ["cached early", "cached late", "waited long"]


def test_a_prompt_that_is_wholly_cached_while_it_waits_goes_first_too() -> None:
    policy = HighestResponseRatio()
    waiting = Request("patient", 0.0, 10)
    warmed = Request("warmed", 5.0, 1_000)
    heads = {policy.lane(r): r for r in (waiting, warmed)}
    warmed.cached_prompt_tokens = 1_000
    assert heads[policy.choose(heads, 10.0)] is warmed
    assert policy.next_change(heads, 10.0) == math.inf


def test_all_just_arrived_the_least_work_goes_first() -> None:
    heads = as_heads([Request(n, 3.0, n) for n in (500, 20, 4_000)])
    assert HighestResponseRatio().choose(heads, 3.0) == 1


@given(requests)
def test_with_a_lane_each_it_is_exactly_hrrn(drawn: list[tuple[float, int, int]]) -> None:
    heads = as_heads(as_requests(drawn))
    chosen = heads[HighestResponseRatio().choose(heads, NOW)]
    assert slope(chosen, NOW) == max(slope(r, NOW) for r in heads.values())


@given(requests, st.sampled_from([1.05, 1.2, 2.0, 10.0]))
def test_through_lanes_it_is_hrrn_within_the_lane_width(drawn: list[tuple[float, int, int]], width: float) -> None:
    waiting = as_requests(drawn)
    queue = WaitingQueue(HighestResponseRatio(lane_width=width))
    for request in waiting:
        queue.add(request)
    while waiting:
        best = max(slope(r, NOW) for r in waiting)
        served = queue.pop(NOW)
        assert slope(served, NOW) * width * (1 + 1e-12) >= best
        waiting.remove(served)


@given(requests, st.floats(0, 1, exclude_max=True))
@example([(0.0, 50_000, 0), (499.0, 49_999, 0)], 0.999999999)
def test_a_choice_stands_until_it_says_and_no_longer(drawn: list[tuple[float, int, int]], share: float) -> None:
    heads = as_heads(as_requests(drawn))
    policy = HighestResponseRatio()
    chosen, until = policy.choose(heads, NOW), policy.next_change(heads, NOW)
    end = until if until < math.inf else 1e9
    assert policy.choose(heads, NOW + (end - NOW) * share) == chosen
    if until < math.inf:
        # The next to lead has a crossing there: at it, the chosen one is no better than another with less work.
        moment = until + 1e-5 * max(1.0, until - NOW)
        rivals = [r for r in heads.values() if r.prompt_tokens < heads[chosen].prompt_tokens]
        assert max(slope(r, moment) for r in rivals) >= slope(heads[chosen], moment) * (1 - 1e-9)


def test_a_queue_of_near_equals_keeps_the_number_of_lanes_small() -> None:
    policy = HighestResponseRatio()
    assert len({policy.lane(Request(n, 0.0, n)) for n in range(1, 131_072)}) <= 65


@pytest.mark.parametrize("width", [1.0, 0.5, math.inf, math.nan])
def test_a_lane_width_that_makes_no_lanes_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match="lane_width must be above 1"):
        HighestResponseRatio(lane_width=width)
