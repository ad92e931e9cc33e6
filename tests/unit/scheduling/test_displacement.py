"""Displacement: who makes room for whom, and who never does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Completed, FirstToken, Preempted
from headway.domain.request import Request
from headway.scheduling.displacement import Displacement, DisplaceRules, Room, Running, Waiting

MS = 10**9
ROOM = Room(seats=0, blocks=1_000, tokens=500, token_budget=512, decodes=4, context_tokens=400)


def step_ps(decodes: int, context: int, prompts: int, tokens: int, before: int) -> int:
    """10 ms, and 0.1 ms a prompt token."""
    return 10 * MS + 10**8 * tokens


def asks(name: str, priority: int = 0, expected: int = 100, adapter: str | None = None) -> Request:
    request = Request(name, 0.0, 50, priority=priority, adapter=adapter)
    request.estimate = PointEstimate(expected, "test")
    return request


def last(running: Sequence[Request], now: float) -> Request:
    return running[-1]


class Case:
    """Requests that run since 0, with 100 tokens each in memory."""

    def __init__(self, *running: Request, rules: DisplaceRules | None = None) -> None:
        self.displacement = Displacement(rules or DisplaceRules(cooldown_seconds=1.0), step_ps)
        self.running = [Running(request, 100, 1, 7) for request in running]
        for request in running:
            self.displacement.observe(Admitted(request, 0.0))

    def plan(self, *heads: Request, room: Room = ROOM, now: float = 5.0, blocks: int = 4) -> list[str]:
        waiting = [Waiting(head, 50, blocks) for head in heads]
        return [str(one.id) for one in self.displacement.plan(waiting, self.running, room, now, last)]


def test_one_of_lower_priority_makes_room_and_the_policy_chooses_among_the_lowest() -> None:
    case = Case(asks("a", 5), asks("b", 7), asks("c", 7), asks("d", 6))
    assert case.plan(asks("urgent")) == ["c"]


def test_who_would_be_admitted_anyway_displaces_nobody() -> None:
    case = Case(asks("a", 5), asks("b", 5))
    assert case.plan(asks("urgent"), room=ROOM._replace(seats=1)) == []
    assert case.plan(asks("u1"), asks("u2"), room=ROOM._replace(seats=1)) == ["b"], "the second one finds no seat"


def test_equals_never_displace() -> None:
    assert Case(asks("a", 5), asks("b", 4)).plan(asks("late", 5)) == []


def test_the_first_that_stays_outside_ends_the_look() -> None:
    assert Case(asks("a", 5)).plan(asks("equal", 5), asks("urgent")) == []


def test_one_that_could_not_start_in_this_step_displaces_nobody() -> None:
    assert Case(asks("a", 5)).plan(asks("urgent"), room=ROOM._replace(tokens=0)) == []


def test_blocks_are_made_free_by_as_many_as_it_takes() -> None:
    case = Case(asks("a", 5), asks("b", 5), asks("c", 5), rules=DisplaceRules())
    room = ROOM._replace(seats=5, blocks=0)
    assert case.plan(asks("urgent"), room=room, blocks=8) == ["c", "b"], "seven blocks each"
    assert case.plan(asks("urgent"), room=room, blocks=400) == [], "all together are too few"


def test_none_goes_where_computing_it_again_takes_longer_than_the_wait() -> None:
    """Again takes 10 ms (100 tokens); the wait is 10 ms for each token that the first one to end has left."""
    assert Case(asks("a", 5, expected=100), asks("b", 0, expected=1)).plan(asks("urgent")) == []
    assert Case(asks("a", 5, expected=100), asks("b", 0, expected=2)).plan(asks("urgent")) == ["a"]


def test_one_that_is_about_to_leave_is_waited_for() -> None:
    case = Case(asks("a", 5), asks("b", 5))
    case.running[1] = case.running[1]._replace(step_tokens=0)
    assert case.plan(asks("urgent")) == []


def test_a_cooldown_after_each_admission() -> None:
    case = Case(asks("a", 5))
    assert case.plan(asks("urgent"), now=0.9) == []
    assert case.plan(asks("urgent"), now=1.0) == ["a"]
    request = case.running[0].request
    case.displacement.observe(Preempted(request, 1.0, for_memory=False))
    assert case.plan(asks("urgent"), now=9.0) == [], "it does not run"
    case.displacement.observe(Admitted(request, 9.0))
    case.displacement.observe(FirstToken(request, 9.1))
    assert case.plan(asks("urgent"), now=9.9) == []
    assert case.plan(asks("urgent"), now=10.0) == ["a"]


def test_none_goes_more_often_than_it_may() -> None:
    case = Case(asks("a", 5), rules=DisplaceRules(times=2, cooldown_seconds=0))
    request = case.running[0].request
    assert [case.plan(asks("urgent")) for _ in range(3)] == [["a"], ["a"], []]
    case.displacement.observe(Completed(request, 6.0, 10))
    case.displacement.observe(Admitted(request, 7.0))
    assert case.plan(asks("urgent"), now=7.0) == ["a"], "another request of that name"


def test_one_whose_adapter_may_find_no_slot_displaces_nobody() -> None:
    urgent = asks("urgent", adapter="french")
    case = Case(asks("a", 5), asks("b", 5))
    assert case.plan(urgent) == []
    case.running[0] = Running(asks("a", 5, adapter="french"), 100, 1, 7)
    assert case.plan(urgent) == ["b"]


@pytest.mark.parametrize(("times", "cooldown", "field"), [(0, 1.0, "times"), (1, -1.0, "cooldown_seconds")])
def test_bounds_that_make_no_sense_are_refused(times: int, cooldown: float, field: str) -> None:
    with pytest.raises(ValueError, match=f"displace {field} must be at least"):
        DisplaceRules(times, cooldown)
