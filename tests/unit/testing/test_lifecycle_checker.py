"""The checker finds what it is there to find, and tells the story."""

from __future__ import annotations

import pytest

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken, Preempted, Refused
from headway.domain.request import Request
from headway.scheduling.lifecycle import LIFE, Stage, after
from headway.testing.lifecycle_checker import LifecycleChecker

ONE = Request("one", 0.0, 3, produced_tokens=2)
TWO = Request("two", 0.0, 3, produced_tokens=2)


def observe(*events: Event) -> LifecycleChecker:
    checker = LifecycleChecker()
    for event in events:
        checker.observe(event)
    return checker


def test_every_stage_but_the_last_leads_to_the_end() -> None:
    reachable = {Stage.ENDED}
    for _ in Stage:
        reachable |= {stage for (stage, _), following in LIFE.moves.items() if following in reachable}
    assert reachable == set(Stage)
    assert not [stage for stage, _ in LIFE.moves if stage is Stage.ENDED]


def test_a_lawful_life_passes() -> None:
    checker = observe(
        Arrived(ONE, 0.0),
        Refused(TWO, 0.0, "too large"),
        Admitted(ONE, 1.0),
        Preempted(ONE, 1.5),
        FirstToken(ONE, 2.0),  # it was on its way
        Admitted(ONE, 2.0),
        Completed(ONE, 3.0, 2),
    )
    assert checker.inside() == []
    checker.finish()


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        ([Admitted(ONE, 0.0)], "is outside and cannot be Admitted"),
        ([Arrived(ONE, 0.0), Arrived(ONE, 0.0)], "is waiting and cannot be Arrived"),
        ([Arrived(ONE, 0.0), Refused(ONE, 0.0, "no")], "is waiting and cannot be Refused"),
        ([Arrived(ONE, 0.0), Admitted(ONE, 0.0), Admitted(ONE, 0.0)], "is prefilling and cannot be Admitted"),
        ([Arrived(ONE, 0.0), Admitted(ONE, 0.0), Completed(ONE, 1.0, 2)], "is prefilling and cannot be Completed"),
        ([Arrived(ONE, 0.0), Preempted(ONE, 0.0)], "is waiting and cannot be Preempted"),
        ([Arrived(ONE, 0.0), Cancelled(ONE, 0.0), Admitted(ONE, 0.0)], "is ended and cannot be Admitted"),
        ([Arrived(ONE, 1.0), Admitted(ONE, 0.5)], "time went back from 1.0 s to 0.5 s"),
        ([Arrived(ONE, 1.0), Arrived(TWO, 0.5)], "time went back from 1.0 s to 0.5 s"),
        ([Arrived(Request("one", 9.0, 3), 1.0)], "it arrives only at 9 s"),
        (
            [Arrived(ONE, 0.0), Admitted(ONE, 0.0), FirstToken(ONE, 1.0), Completed(ONE, 2.0, 5)],
            "it ended with 5 output tokens",
        ),
    ],
)
def test_an_unlawful_one_fails_with_its_story(events: list[Event], fault: str) -> None:
    with pytest.raises(AssertionError) as failure:
        observe(*events)
    assert fault in str(failure.value)
    assert "the story of request" in str(failure.value)
    assert str(failure.value).count(" tokens") >= len([e for e in events if e.request is events[-1].request])


def test_whoever_vanishes_is_named() -> None:
    checker = observe(Arrived(ONE, 0.0), Arrived(TWO, 0.0), Cancelled(TWO, 1.0))
    checker.finish(still_inside=1)
    with pytest.raises(AssertionError, match=r"1 requests never ended, the shell says 0(.|\n)*request 'one':\nArrived"):
        checker.finish()


def test_the_table_says_what_may_follow() -> None:
    assert after(Stage.OUTSIDE, Arrived(ONE, 0.0)) is Stage.WAITING
    with pytest.raises(ValueError, match=r"request 'one' is ended .*nothing may follow"):
        after(Stage.ENDED, Arrived(ONE, 0.0))
