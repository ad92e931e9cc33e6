"""Laws of rescheduling: only what may move moves, each request once, and asking changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.replica_view import OccupiedReplica, SentRequest
from headway.domain.request import Request, RequestView
from headway.policies.contracts import Move, ReschedulingPolicy
from headway.testing.examples import examples
from headway.testing.laws.routing import OfferedReplica

MakeRescheduling = Callable[[], ReschedulingPolicy]

_NOW = 1e3
_ROUNDS_MAX = 20

_Sent: TypeAlias = tuple[int, int, int, bool, bool]
"""Prompt tokens, tokens produced, priority, whether it may move, whether it has begun."""


def moves_are_possible(make: MakeRescheduling) -> None:
    """Each names two different replicas of those offered, a request of the first that may move, and no request twice.

    The destination does not drain, and can take the request. There are at most `moves_max`.
    """

    @settings(deadline=None, max_examples=examples(100))
    @given(replicas=_fleets())
    def check(replicas: list[OccupiedReplica]) -> None:
        policy = make()
        moves = policy.moves(replicas, _NOW)
        assert len(moves) <= policy.moves_max, f"{len(moves)} moves, and at most {policy.moves_max} are promised"
        for move in moves:
            offered = [one for one in replicas if one is move.source or one is move.destination]
            assert len(offered) == 2, "a move is between two of the replicas offered"
            mobile = [sent.request for sent in (*move.source.waiting, *move.source.running) if sent.may_move]
            assert any(request is move.request for request in mobile), f"{move.request!r} may not move"
            assert not move.destination.is_draining, "nothing is sent to a replica that drains"
            assert move.destination.could_take(move.request), "the destination cannot take it"
        ids = [move.request.id for move in moves]
        assert len(ids) == len(set(ids)), "a request is in one place, and moves to one"

    check()


def a_fleet_of_one_never_moves(make: MakeRescheduling) -> None:
    """Whatever waits there: there is no other place."""

    @settings(deadline=None, max_examples=examples(30))
    @given(replicas=_fleets())
    def check(replicas: list[OccupiedReplica]) -> None:
        assert not make().moves(replicas[:1], _NOW)
        assert not make().moves([], _NOW)

    check()


def asking_moves_nothing(make: MakeRescheduling) -> None:
    """The same question has the same answer, from the same policy and from another; and what was offered stays."""

    @settings(deadline=None, max_examples=examples(50))
    @given(replicas=_fleets())
    def check(replicas: list[OccupiedReplica]) -> None:
        policy, offered = make(), list(replicas)
        contents = [(list(one.waiting), list(one.running)) for one in replicas]
        first = [_named(move) for move in policy.moves(offered, _NOW)]
        assert [_named(move) for move in policy.moves(offered, _NOW)] == first, "asking again changed the answer"
        assert [_named(move) for move in make().moves(offered, _NOW)] == first, "two policies differ"
        assert offered == replicas, "the policy changed the list of replicas"
        assert [(list(one.waiting), list(one.running)) for one in replicas] == contents, "the policy changed a replica"

    check()


def moves_come_to_rest(make: MakeRescheduling) -> None:
    """Where nothing comes and nothing ends, moves end: no request goes to and fro for ever."""

    @settings(deadline=None, max_examples=examples(50))
    @given(replicas=_fleets())
    def check(replicas: list[OccupiedReplica]) -> None:
        policy = make()
        for _ in range(_ROUNDS_MAX * sum([len(one.waiting) + len(one.running) + 1 for one in replicas])):
            moves = policy.moves(replicas, _NOW)
            if not moves:
                return
            for move in moves:
                replicas = _moved(replicas, move)
        raise AssertionError("requests go to and fro for ever")

    check()


def _named(move: Move) -> tuple[str, str, object]:
    return move.source.replica.id, move.destination.replica.id, move.request.id


def _moved(replicas: Sequence[OccupiedReplica], move: Move) -> list[OccupiedReplica]:
    """The replicas after a move; a request that waited begins at once."""
    after = []
    for one in replicas:
        waiting, running = list(one.waiting), list(one.running)
        if one.replica.id == move.source.replica.id:
            waiting = [sent for sent in waiting if sent.request is not move.request]
            running = [sent for sent in running if sent.request is not move.request]
        elif one.replica.id == move.destination.replica.id:
            request = move.request
            running.append(SentRequest(request, (), request.prompt_tokens + request.produced_tokens, True))
        after.append(_replica(one, waiting, running))
    return after


def _replica(one: OccupiedReplica, waiting: list[SentRequest], running: list[SentRequest]) -> OccupiedReplica:
    """The replica with these requests, its figures being what they come to."""
    inside = [*waiting, *running]
    assert isinstance(one.replica, OfferedReplica)
    figures = one.replica._replace(
        requests=len(inside),
        prefill_tokens=sum([sent.request.prompt_tokens for sent in inside if not sent.request.produced_tokens]),
        decode_tokens=float(sum([_left(sent) for sent in inside])),
        kv_tokens=sum([sent.request.prompt_tokens + sent.request.produced_tokens for sent in inside]),
    )
    return one._replace(replica=figures, waiting=waiting, running=running, waiting_requests=len(waiting))


def _left(sent: SentRequest) -> float:
    estimate = sent.request.estimate
    return 0.0 if estimate is None else estimate.remaining_mean(sent.request.produced_tokens)


def _fleets() -> st.SearchStrategy[list[OccupiedReplica]]:
    request = st.tuples(st.integers(1, 5_000), st.integers(0, 500), st.integers(-2, 2), st.booleans(), st.booleans())
    replica = st.tuples(
        st.lists(request, max_size=6),
        st.integers(1, 8),
        st.none() | st.integers(1, 20_000),
        st.builds(ServiceCosts, st.floats(1e-7, 1e-2), st.floats(1e-4, 1.0)),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([1, 2_500, 10_000]),
    )
    return st.lists(replica, min_size=1, max_size=4).map(_built)


def _built(
    drawn: Sequence[tuple[list[_Sent], int, int | None, ServiceCosts, bool, int]],
) -> list[OccupiedReplica]:
    fleet: list[OccupiedReplica] = []
    number = 0
    for index, (requests, seats, memory, costs, is_draining, longest) in enumerate(drawn):
        waiting, running = [], []
        for prompt, produced, priority, may_move, has_begun in requests:
            request = Request(number, 900.0 + number, prompt, priority=priority)
            request.produced_tokens = produced if has_begun else 0
            request.estimate = PointEstimate(1_000, "law")
            number += 1
            if has_begun:
                running.append(SentRequest(request, (), prompt + produced, may_move))
            else:
                waiting.append(SentRequest(request, (), 0, may_move))
        view = OfferedReplica(f"r{index}", requests_max=seats, kv_tokens_max=memory, costs=costs)
        bare = OccupiedReplica(view, (), (), 0, is_draining, _NOW, partial(_is_short, longest))
        fleet.append(_replica(bare, waiting, running))
    return fleet


def _is_short(longest: int, request: RequestView) -> bool:
    return request.prompt_tokens <= longest
