"""The self-tuned threshold: what long prefills leave of a step for the next request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.scheduling.self_tuned_threshold import StepFacts, self_tuned_threshold, water_level

QUIET = StepFacts(
    token_budget=1000, seats_free=5, decoding=100, prefill_left=[5_000], head=None, memory=MemoryView(1_000, 1_000, 16)
)


def needs(tokens: int, cached: int = 0) -> Request:
    return Request("next", 0.0, tokens + cached, cached_prompt_tokens=cached)


def test_nothing_is_kept_free_for_no_request() -> None:
    waits = QUIET._replace(head=needs(50))
    assert self_tuned_threshold(QUIET, 0) == 0
    assert self_tuned_threshold(waits._replace(seats_free=0), 0) == 0
    assert self_tuned_threshold(waits._replace(prefill_left=[]), 0) == 0
    assert self_tuned_threshold(waits._replace(prefill_left=[500, 350]), 0) == 0, "all fit beside it"
    assert self_tuned_threshold(waits._replace(memory=MemoryView(3, 1_000, 16)), 0) == 0, "four blocks are wanted"
    assert self_tuned_threshold(waits._replace(memory=MemoryView(4, 1_000, 16)), 0) > 0
    assert self_tuned_threshold(QUIET._replace(head=needs(501)), 0) == 0, "more than half a step"
    assert self_tuned_threshold(QUIET._replace(head=needs(500)), 0) > 0


def test_long_prefills_leave_the_tokens_that_the_next_one_needs() -> None:
    assert self_tuned_threshold(QUIET._replace(head=needs(50)), 0) == 850
    assert self_tuned_threshold(QUIET._replace(head=needs(50, cached=7_000)), 0) == 850
    assert self_tuned_threshold(QUIET._replace(head=needs(50), prefill_left=[5_000] * 2), 0) == 425
    assert self_tuned_threshold(QUIET._replace(head=needs(490)), 0) == 450, "half at most"


def test_prefills_share_like_water() -> None:
    facts = QUIET._replace(head=needs(50), prefill_left=[100, 5_000, 150, 4_000])
    assert self_tuned_threshold(facts, 0) == 300, "100 and 150 are served whole, and 600 of 850 are left for two"


def test_the_operators_own_threshold_is_never_exceeded() -> None:
    assert self_tuned_threshold(QUIET, 300) == 300
    assert self_tuned_threshold(QUIET._replace(head=needs(50)), 300) == 300
    assert self_tuned_threshold(QUIET._replace(head=needs(50), prefill_left=[5_000] * 4), 300) == 212


@given(
    st.lists(st.integers(1, 5_000), min_size=1, max_size=8),
    st.integers(1, 400),
    st.integers(50, 2_000),
    st.integers(0, 60),
)
def test_no_token_of_a_step_is_left_over(prefill_left: list[int], next_tokens: int, budget: int, decoding: int) -> None:
    facts = QUIET._replace(token_budget=budget, decoding=decoding, prefill_left=prefill_left, head=needs(next_tokens))
    threshold = self_tuned_threshold(facts, 0)
    taken = sum(min(left, threshold or left) for left in prefill_left)
    room = max(0, budget - decoding)
    room -= min(next_tokens, room // 2)
    if threshold > 1:
        assert room - len(prefill_left) < taken <= room, "but for rounding, all but what is kept"
    elif threshold == 0:
        assert taken <= room or next_tokens > budget // 2, "all fit beside it"


def test_the_level_is_the_largest_wish_where_all_fit() -> None:
    assert water_level([5, 2, 9], 100) == 9
    assert water_level([5, 2, 9], 16) == 9
    assert water_level([5, 2, 9], 15) == 8
    assert water_level([5, 2, 9], 6) == 2
