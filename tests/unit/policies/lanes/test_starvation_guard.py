"""The starvation guard by hand: overdue requests get their share of the tokens, and what it counts is tokens."""

from __future__ import annotations

import math

import pytest

from headway.policies.lanes.starvation_guard import StarvationGuard


def test_an_overdue_request_goes_once_others_had_three_times_its_tokens() -> None:
    """A share of a quarter: 600 tokens go when 1,800 of others went ahead, in however many requests."""
    guard = StarvationGuard(overdue_seconds=5.0, overdue_share=0.25)
    assert not guard.promotes(0.0, 600, 5.0)
    assert not guard.admitted(1.0, 1_000, 5.0, is_oldest=False)
    assert not guard.admitted(1.0, 799, 5.0, is_oldest=False)
    assert not guard.promotes(0.0, 600, 5.0)
    assert not guard.admitted(1.0, 1, 5.0, is_oldest=False)
    assert guard.promotes(0.0, 600, 5.0)
    assert not guard.promotes(0.0, 601, 5.0)
    assert guard.admitted(0.0, 600, 5.0, is_oldest=True)
    assert not guard.promotes(0.0, 1, 5.0), "the count starts again"


def test_not_before_it_is_overdue() -> None:
    guard = StarvationGuard(overdue_seconds=5.0, overdue_share=0.25)
    guard.admitted(0.0, 1_800, 0.0, is_oldest=False)
    assert not guard.promotes(1.0, 600, 5.9)
    assert guard.due(1.0, 600, 5.9) == 6.0
    assert guard.promotes(1.0, 600, 6.0)
    assert guard.due(1.0, 600, 6.0) == math.inf
    assert guard.due(1.0, 601, 5.9) == math.inf, "time alone does not help"


def test_the_oldest_that_goes_before_it_is_overdue_counts_like_others() -> None:
    guard = StarvationGuard(overdue_seconds=5.0, overdue_share=0.5)
    assert not guard.admitted(0.0, 300, 4.9, is_oldest=True)
    assert guard.promotes(0.0, 300, 5.0)
    assert not guard.promotes(0.0, 301, 5.0)


def test_with_a_share_of_one_overdue_requests_go_first() -> None:
    assert StarvationGuard(overdue_seconds=0.0, overdue_share=1.0).promotes(3.0, 10_000, 3.0)


@pytest.mark.parametrize(
    ("seconds", "share", "part"),
    [(-1.0, 0.5, "overdue_seconds"), (math.inf, 0.5, "overdue_seconds"), (1.0, 0.0, "share"), (1.0, 1.1, "share")],
)
def test_options_out_of_range(seconds: float, share: float, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        StarvationGuard(overdue_seconds=seconds, overdue_share=share)
