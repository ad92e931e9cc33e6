"""When lanes are learned, adjusted and learned again, arrival by arrival."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway.policies.lanes.lane_learner import LaneLearner
from headway.policies.lanes.partition import Span


def learner(window: int = 10_000, relearn: int = 2_000) -> LaneLearner:
    def partition(sizes: Sequence[int]) -> tuple[Span, ...]:
        return ()

    return LaneLearner(partition, window_requests=window, relearn_requests=relearn)


def due(one: LaneLearner, arrivals: int, what: str) -> list[int]:
    """At which of so many arrivals from now on this is to be done."""
    return [one.seen for _ in range(arrivals) if one.note(7) == what]


def test_partitions_come_at_doublings_and_then_every_so_many() -> None:
    assert due(learner(), 9_000, "partition") == [250, 500, 1_000, 2_000, 4_000, 6_000, 8_000]
    assert due(learner(relearn=300), 1_500, "partition") == [250, 500, 800, 1_100, 1_400]
    assert due(learner(relearn=0), 2_000, "partition") == [250], "learned once and kept"


def test_between_them_edges_are_adjusted() -> None:
    assert due(learner(), 1_800, "adjustment") == [750, 1_250, 1_500, 1_750]
    assert due(learner(relearn=0), 1_000, "adjustment") == [], "a frozen partition is not moved either"
    assert due(learner(), 249, "nothing") == list(range(1, 250))


def test_the_window_slides_and_the_latest_are_those_since_an_adjustment() -> None:
    one = learner(window=300)
    for size in range(400):
        one.note(size)
    assert one.window() == list(range(100, 400))
    assert one.latest() == list(range(150, 400))
    few = learner()
    for size in range(9):
        few.note(size)
    assert few.latest() == few.window() == list(range(9))


@pytest.mark.parametrize(
    ("seen", "relearn", "following"),
    [(249, 2_000, 250), (250, 2_000, 500), (300, 2_000, 600), (5_000, 2_000, 7_000), (300, 0, None), (100, 0, 250)],
)
def test_it_goes_on_from_where_it_was_saved(seen: int, relearn: int, following: int | None) -> None:
    one = learner(relearn=relearn)
    one.resume([1, 2, 3], seen)
    assert (one.seen, one.window()) == (seen, [1, 2, 3])
    assert due(one, 2_500, "partition")[:1] == ([] if following is None else [following])


def test_options_at_and_past_their_bounds() -> None:
    assert learner(window=2, relearn=0).window() == []
    with pytest.raises(ValueError, match=r"window_requests must be at least 2, got 1"):
        learner(window=1)
    with pytest.raises(ValueError, match=r"relearn_requests must be at least 0 \(0: learn once\), got -1"):
        learner(relearn=-1)
