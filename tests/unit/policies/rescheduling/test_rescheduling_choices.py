"""What the rescheduling policies choose, on fleets small enough to check by hand."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import OccupiedReplica, SentRequest
from headway.domain.request import Request
from headway.policies.contracts import Move
from headway.policies.rescheduling.migrate import Migrate
from headway.policies.rescheduling.take_back import TakeBack
from headway.testing.laws.routing import OfferedReplica

COSTS = ServiceCosts(1e-3, 0.064)  # a second for 1,000 prompt tokens, and for 1,000 output tokens in a batch of 64


def sent(number: int, prompt: int, produced: int = 0, priority: int = 0, *, may_move: bool = True) -> SentRequest:
    request = Request(number, 0.0, prompt, priority=priority)
    request.produced_tokens = produced
    request.estimate = PointEstimate(produced + 1, "by hand")
    return SentRequest(request, (), prompt + produced if produced else 0, may_move)


def replica(
    name: str,
    waiting: Sequence[SentRequest] = (),
    running: Sequence[SentRequest] = (),
    *,
    memory: int = 10_000,
    is_draining: bool = False,
) -> OccupiedReplica:
    inside = [*waiting, *running]
    view = OfferedReplica(
        name,
        requests=len(inside),
        prefill_tokens=sum(one.request.prompt_tokens for one in waiting),
        kv_tokens=sum(one.request.prompt_tokens + one.request.produced_tokens for one in inside),
        kv_tokens_max=memory,
        costs=COSTS,
    )
    return OccupiedReplica(view, waiting, running, len(waiting), is_draining, 0.0, lambda request: not is_draining)


def named(moves: Sequence[Move]) -> list[tuple[object, str, str]]:
    return [(move.request.id, move.source.replica.id, move.destination.replica.id) for move in moves]


def test_the_latest_sent_goes_where_nothing_waits() -> None:
    full = replica("a", [sent(1, 1_000), sent(2, 1_000), sent(3, 1_000)])
    assert named(TakeBack().moves([full, replica("b")], 0.0)) == [(3, "a", "b")], "2 would gain nothing any more"
    assert named(TakeBack().moves([full, replica("b"), replica("c")], 0.0)) == [(3, "a", "b"), (2, "a", "c")]
    assert not TakeBack().moves([full, replica("b", [sent(4, 1)])], 0.0), "one waits there"


def test_what_cannot_begin_at_once_stays() -> None:
    full = replica("a", [sent(1, 1_000), sent(2, 4_000)])
    small = replica("b", running=[sent(3, 100, 1)], memory=4_000)
    assert named(TakeBack().moves([full, small], 0.0)) == [(1, "a", "b")], "the other one does not fit"
    assert not TakeBack(least_gain_seconds=4.0).moves([full, small], 0.0)


def test_a_replica_that_drains_gives_up_whatever_the_gain() -> None:
    draining = replica("a", [sent(1, 100)], is_draining=True)
    busy = replica("b", running=[sent(2, 5_000, 1)])
    assert named(TakeBack(least_gain_seconds=9.0).moves([draining, busy], 0.0)) == [(1, "a", "b")]


def test_the_shortest_of_the_least_urgent_migrates_from_the_fullest_to_the_freest() -> None:
    full = replica("a", running=[sent(1, 4_000, 10), sent(2, 3_000, 10), sent(3, 2_900, 10, priority=-1)])
    free, freer = replica("b", running=[sent(4, 5_000, 1)]), replica("c")
    policy = Migrate(priority_headroom=0.0)
    assert policy.freeness(full) == (10_000 - 9_930) / 3
    assert named(policy.moves([full, free, freer], 0.0)) == [(2, "a", "c")]
    assert not policy.moves([full, replica("b", running=[sent(4, 9_900, 1)])], 0.0), "none is free"


def test_no_move_that_leaves_the_destination_no_freer() -> None:
    full = replica("a", running=[sent(1, 9_960, 1)])
    assert not Migrate().moves([full, replica("b", running=[sent(2, 9_900, 1)], memory=19_870)], 0.0)


def test_room_is_made_for_a_long_prompt_that_waits() -> None:
    waiting = replica("a", [sent(1, 6_000)], [sent(2, 3_000, 10), sent(3, 2_000, 10)])
    assert Migrate().freeness(waiting) < 0
    assert named(Migrate().moves([waiting, replica("b")], 0.0)) == [(3, "a", "b")]


def test_high_priority_brings_its_headroom() -> None:
    shared = replica("a", running=[sent(1, 3_000, 10, priority=-1), sent(2, 2_500, 10)])
    assert named(Migrate(priority_headroom=0.5).moves([shared, replica("b")], 0.0)) == [(2, "a", "b")]
    assert not Migrate(priority_headroom=0.0).moves([shared, replica("b")], 0.0)
