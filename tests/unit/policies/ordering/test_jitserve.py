"""JITServe: worth by hand for each kind of deadline, decay of what is late, lanes and changes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.domain.request import Request
from headway.policies.contracts import LaneId
from headway.policies.ordering.jitserve import Jitserve
from headway.scheduling.queue import WaitingQueue
from headway.testing.examples import examples

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)


def request(
    prompt_tokens: int = 1_000,
    expected: int = 50,
    *,
    deadline: float | None = None,
    tpot: float | None = None,
    end: float | None = None,
    program: ProgramStage | None = None,
    at: float = 0.0,
    number: int = 0,
) -> Request:
    later = LaterDeadlines(tpot, end, program)
    made = Request(number, at, prompt_tokens, deadline=deadline, later_deadlines=later)
    made.estimate = PointEstimate(expected, "test")
    return made


def heads_of(order: Jitserve, *waiting: Request) -> dict[LaneId, Request]:
    return {(order.lane(one), place): one for place, one in enumerate(waiting)}


def worth(order: Jitserve, one: Request, now: float) -> float:
    return order._worth(one, now)


def test_in_time_it_is_weighted_tokens_over_seconds_left() -> None:
    """1 s of prefill and 1 s of decode for 1,000 + 8·50 tokens, whatever kind of deadline they have."""
    order = Jitserve(costs=COSTS)
    for one in (request(deadline=5.0), request(end=5.0), request(deadline=5.0, tpot=0.1), request()):
        assert worth(order, one, 0.0) == pytest.approx(1_400 / 2) == -order.rank(one)


def test_what_would_come_late_counts_by_the_time_allowed_over_the_time_taken() -> None:
    order = Jitserve(costs=COSTS)
    assert worth(order, request(end=5.0), 8.0) == pytest.approx(700 * 5 / 10)
    assert worth(order, request(deadline=5.0), 9.0) == pytest.approx(700 * 5 / 10), "all by the first token"
    # by its first token 5 of 10 s; by its last one 5 + 0.1·49 of 11 s
    both = (1_000 * 5 / 10 + 400 * 9.9 / 11) / 2
    assert worth(order, request(deadline=5.0, tpot=0.1), 9.0) == pytest.approx(both)
    assert worth(Jitserve(costs=COSTS, lateness_exponent=2.0), request(end=5.0), 8.0) == pytest.approx(700 / 4)


def test_a_stage_is_due_after_its_share_of_the_programs_time() -> None:
    order = Jitserve(costs=COSTS)
    first = request(program=ProgramStage("p", 1, 4, 20.0))
    assert worth(order, first, 3.0) == pytest.approx(700)
    assert worth(order, first, 8.0) == pytest.approx(700 * 5 / 10)


def test_a_deadline_that_has_passed_before_the_request_came_is_worth_next_to_nothing() -> None:
    assert worth(Jitserve(costs=COSTS), request(end=-5.0), 0.0) == pytest.approx(700e-6)


def test_an_overrun_does_not_make_a_request_urgent() -> None:
    """In the published code what is left is then nothing, and the worth infinite."""
    order = Jitserve(costs=COSTS)
    overrun = request(expected=50, end=5.0)
    overrun.produced_tokens = 80
    assert worth(order, overrun, 1.0) < 2_000


def test_the_most_worth_goes_first_and_what_is_late_falls_behind() -> None:
    order = Jitserve(costs=COSTS)
    dense, plain = request(2_000, 50, deadline=4.0, number=1), request(1_000, 50, deadline=99.0, number=2)
    heads = heads_of(order, dense, plain)
    assert heads[order.choose(heads, 0.0)] is dense  # 2,400 tokens in 3 s against 1,400 in 2 s
    change = order.next_change(heads, 0.0)
    assert 2.0 < change <= 2.0 + (800 / 700 - 1) * 4 + 1e-9
    assert heads[order.choose(heads, change + 1e-6)] is plain


@given(
    st.lists(
        st.builds(
            request,
            st.integers(1, 9_000),
            st.integers(1, 900),
            deadline=st.none() | st.floats(0, 60),
            tpot=st.none() | st.sampled_from([0.001, 0.05]),
            end=st.none() | st.floats(0, 60),
            at=st.floats(0, 9),
        ),
        min_size=2,
        max_size=5,
    ),
    st.floats(9, 90),
    st.floats(0, 1),
    st.sampled_from([0.5, 1.0, 2.0]),
)
@settings(max_examples=examples(300))
def test_the_choice_stands_until_the_next_change(
    waiting: list[Request], now: float, share: float, exponent: float
) -> None:
    order = Jitserve(costs=COSTS, lateness_exponent=exponent)
    heads = heads_of(order, *waiting)
    chosen, change = order.choose(heads, now), order.next_change(heads, now)
    assert change >= now
    then = now + share * (min(change, now + 1_000) - now) * (1 - 1e-9)
    assert worth(order, heads[chosen], then) >= worth(order, heads[order.choose(heads, then)], then) * (1 - 1e-9)


@pytest.mark.parametrize("exponent", [1e-6, 1e-3, 1e3])
def test_an_exponent_far_from_1_breaks_no_choice(exponent: float) -> None:
    order = Jitserve(costs=COSTS, lateness_exponent=exponent)
    heads = heads_of(order, request(10, deadline=5.0), request(100_000, 1, deadline=1.0))
    assert order.choose(heads, 9.0) in heads
    assert 9.0 <= order.next_change(heads, 9.0) < math.inf


def test_requests_of_a_queue_are_served_by_worth() -> None:
    order = Jitserve(costs=COSTS)
    queue = WaitingQueue(order)
    sizes = [(1_000, 10), (4_000, 10), (100, 10), (1_000, 400)]
    for number, (prompt_tokens, expected) in enumerate(sizes):
        queue.add(request(prompt_tokens, expected, end=500.0 + 100 * number, number=number))
    # tokens a second: 1,080 in 1.2 s, 4,080 in 4.2 s, 180 in 0.3 s, 4,200 in 9 s
    assert [queue.pop(0.0).id for _ in sizes] == [1, 0, 2, 3]


def test_without_an_estimate_it_says_what_to_name() -> None:
    bare = Request(0, 0.0, 10)
    with pytest.raises(ValueError, match="name a predictor with --prediction"):
        Jitserve(costs=COSTS).lane(bare)


def test_one_head_stands_for_ever() -> None:
    order = Jitserve(costs=COSTS)
    assert order.next_change(heads_of(order, request(deadline=1.0)), 50.0) == math.inf
