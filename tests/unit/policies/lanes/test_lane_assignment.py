"""Routing: ranges, tolerances, bubbles and their end."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from headway.policies.lanes.lane_assignment import LaneAssigner
from headway.policies.lanes.partition import Span, refine_and_prune

SPANS = (Span(100, 200, 150.0, 10), Span(1_000, 2_000, 1_500.0, 10))


def ranges(router: LaneAssigner) -> list[tuple[int, int]]:
    return [(lane.low, lane.high) for lane in router.lanes]


def test_inside_a_range_and_within_the_tolerances_no_lane_is_opened() -> None:
    router = LaneAssigner(SPANS)
    short, long = router.lanes
    for size, lane in (
        (100, short),
        (200, short),
        (220, short),
        (900, long),
        (1_500, long),
        (2_200, long),
        (90, short),
    ):
        assert router.route(size) is lane
    assert router.lanes == [short, long]


def test_between_two_lanes_the_relatively_nearer_takes_it() -> None:
    router = LaneAssigner((Span(1, 100, 50.0, 9), Span(112, 300, 200.0, 9)))
    short, long = router.lanes
    assert router.route(105) is short  # 5 % above 100, and 112 is 6.7 % above it
    assert router.route(107) is long  # 7 % above 100, 112 is 4.7 % above it


def test_what_fits_nowhere_opens_a_bubble_around_it() -> None:
    router = LaneAssigner(SPANS)
    bubble = router.route(500)
    assert bubble.bubble
    assert (bubble.low, bubble.high) == (450, 550)  # 0.2 · 500 wide
    assert router.route(540) is bubble
    small = router.route(240)
    assert (small.low, small.high) == (208, 272)  # at least 64 wide
    assert router.route(560) is bubble  # within the bubble's own tolerance
    assert ranges(router) == [(100, 200), (208, 272), (450, 550), (1_000, 2_000)]


def test_a_bubble_is_clipped_by_its_neighbours() -> None:
    router = LaneAssigner((Span(1_000, 1_000, 1_000.0, 1), Span(1_400, 1_400, 1_400.0, 1)))
    bubble = router.route(1_150)
    assert bubble.low > 1_000
    assert bubble.high < 1_400


def test_the_authors_bubble_is_as_wide_as_the_lane_before_and_has_no_tolerance() -> None:
    router = LaneAssigner((Span(0, 99, 50.0, 0), Span(100, 199, 150.0, 0)), tolerant=False)
    bubble = router.route(205)
    assert (bubble.low, bubble.high) == (200, 299)
    far = router.route(1_000)
    assert (far.low, far.high) == (951, 1_050)  # 1000 − 99 // 2, and 99 more
    lonely = LaneAssigner((Span(1_000, 1_099, 1_050.0, 0),), tolerant=False).route(500)
    assert (lonely.low, lonely.high) == (0, 500)  # their (0, 100) would not hold it


def test_an_empty_bubble_goes_after_its_rounds_and_not_before() -> None:
    router = LaneAssigner(SPANS, empty_rounds=3)
    bubble = router.route(500)
    router.enter(bubble)
    for _ in range(10):
        router.new_round()
    assert router.knows(bubble)  # somebody waits in it
    router.leave(bubble)
    for _ in range(3):
        router.new_round()
    assert router.knows(bubble)
    router.new_round()
    assert not router.knows(bubble)
    assert ranges(router) == [(100, 200), (1_000, 2_000)]  # what was learned stays, empty or not
    assert router.route(500).number != bubble.number


def test_adjusting_widens_to_what_tolerance_let_in_and_moves_the_mean() -> None:
    router = LaneAssigner(SPANS)
    router.adjust([95, 210, 210, 210, 210, 600])
    short = router.lanes[0]
    assert (short.low, short.high) == (95, 210)
    assert 150 < short.mean < 187
    assert ranges(router)[1] == (1_000, 2_000)


@given(st.lists(st.integers(0, 20_000), min_size=1, max_size=60), st.lists(st.integers(0, 20_000), max_size=60))
def test_every_size_has_a_lane_that_is_for_it_and_lanes_never_overlap(seen: list[int], sizes: list[int]) -> None:
    for tolerant in (True, False):
        router = LaneAssigner(refine_and_prune(seen, requests_min=1), tolerant=tolerant)
        for place, size in enumerate(sizes):
            lane = router.route(size)
            assert lane in router.lanes
            slack = 1.10 if tolerant else 1.0
            assert lane.low * (0.9 if tolerant else 1.0) <= size <= max(lane.high * slack, lane.high)
            assert router.route(size) is lane
            if place % 7 == 6:
                router.adjust(sizes[: place + 1])
            assert all(a.high < b.low for a, b in pairwise(router.lanes))


@given(st.lists(st.integers(0, 1_000_000), max_size=400))
def test_bubbles_stay_few_whatever_comes(sizes: list[int]) -> None:
    """With bubbles 20 % wide and 10 % tolerance on both sides, a million sizes cannot open more than this."""
    router = LaneAssigner()
    for size in sizes:
        router.route(size)
    assert len(router.lanes) <= 120
