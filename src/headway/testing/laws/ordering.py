"""Laws of ordering: any two requests compare or tie, and time changes an answer only when announced."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from itertools import combinations
from typing import NamedTuple, Protocol

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request, RequestId
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import LanedOrdering, OrderingPolicy
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.class_queue import ClassQueue
from headway.scheduling.queue import Resumed
from headway.scheduling.scheduler import Policies, Scheduler
from headway.testing.examples import examples
from headway.testing.lifecycle_checker import LifecycleChecker
from headway.testing.naive import NaiveQueue, NaiveScheduler
from headway.testing.scripted import DriftingPrediction, StampedPrediction
from headway.testing.strategies import GAPS_SECONDS, request_lists, requests

MakeOrdering = Callable[[], OrderingPolicy]

_RESUMED: tuple[Resumed, ...] = ("front", "by-rank")


def ranks_are_total(make: MakeOrdering) -> None:
    """Of any two ranks exactly one of <, =, > holds: no NaN, no tuples of two lengths, nothing incomparable."""

    @settings(deadline=None, max_examples=examples(50))
    @given(waiting=request_lists(min_size=2, max_produced_tokens=20))
    def check(waiting: list[Request]) -> None:
        ordering = make()
        lanes = [ordering.lane(request) if isinstance(ordering, LanedOrdering) else None for request in waiting]
        ranks = [ordering.rank(request) for request in waiting]
        for (lane, rank), (other_lane, other) in combinations(zip(lanes, ranks, strict=True), 2):
            if lane != other_lane:
                continue
            relations = [rank < other, rank == other, rank > other]  # type: ignore[operator]  # that is the question
            assert relations.count(True) == 1, f"ranks {rank!r} and {other!r} have no order"

    check()


def choose_names_a_lane_that_waits(make: MakeOrdering) -> None:
    """The lane chosen has a head. Asking again, in any order of the lanes, gives the same; so there is one answer."""

    @settings(deadline=None, max_examples=examples(50))
    @given(moves=_moves(), pool=_pools())
    def check(moves: list[_Move], pool: list[Request]) -> None:
        ordering = _laned(make)
        game = _Game([NaiveScheduler(ordering, _stamps(pool))], pool)
        for move in moves:
            game.play(move)
            heads = game.naive_queue.heads()
            if not heads:
                continue
            lane = ordering.choose(heads, game.now)
            assert lane in heads, f"lane {lane!r} has no waiting request, only {list(heads)} have"
            assert ordering.choose(heads, game.now) == lane, "asked again, it chose another lane"
            backwards = dict(reversed(list(heads.items())))
            assert ordering.choose(backwards, game.now) == lane, "its choice depends on the order of the lanes"

    check()


def next_change_is_never_late(make: MakeOrdering) -> None:
    """Before the time that `next_change` names, the same heads give the same choice."""

    @settings(deadline=None, max_examples=examples(50))
    @given(moves=_moves(), pool=_pools(), fractions=st.lists(st.floats(0, 1, exclude_max=True), min_size=4, max_size=4))
    def check(moves: list[_Move], pool: list[Request], fractions: list[float]) -> None:
        ordering = _laned(make)
        game = _Game([NaiveScheduler(ordering, _stamps(pool))], pool)
        for move in moves:
            game.play(move)
            heads, now = game.naive_queue.heads(), game.now
            if not heads:
                continue
            lane, change = ordering.choose(heads, now), ordering.next_change(heads, now)
            assert change >= now, f"at {now!r} s the next change is said to be at {change!r} s, in the past"
            horizon = min(change, now + 10_000)
            times = [now + fraction * (horizon - now) for fraction in fractions]
            for time in [*times, math.nextafter(change, -math.inf) if change < math.inf else horizon]:
                if now <= time < change:
                    chosen = ordering.choose(heads, time)
                    assert chosen == lane, f"lane {lane!r} at {now!r} s, {chosen!r} at {time!r} s, before {change!r} s"

    check()


def the_fast_queue_equals_the_naive_one(make: MakeOrdering) -> None:
    """The waiting queue with lanes, caches and heaps answers as a list searched from end to end; no request is lost."""

    @settings(deadline=None, max_examples=examples(50))
    @given(moves=_moves(), pool=_pools(), resumed=st.sampled_from(_RESUMED))
    def check(moves: list[_Move], pool: list[Request], resumed: Resumed) -> None:
        life = LifecycleChecker()
        fast = Scheduler(Policies(make(), Greedy(), LatestAdmitted(), _stamps(pool)), resumed=resumed, listeners=[life])
        naive = NaiveScheduler(make(), _stamps(pool), resumed)
        game = _Game([fast, naive], pool)
        for move in moves:
            game.play(move)
            assert len(fast.queue) == len(naive.queue)
            assert sorted(request.id for request in fast.queue) == sorted(naive.queue.ids())
            assert _id(fast.head(game.now)) == _id(naive.head(game.now))
            assert fast.queue.stands_until(game.now) >= game.now
        while (head := naive.head(game.now)) is not None:
            assert fast.admit(game.now).id == head.id == naive.admit(game.now).id
        assert fast.head(game.now) is None
        assert len(fast.queue) == 0
        life.finish(still_inside=len(life.inside()))

    check()


def same_events_same_order(make: MakeOrdering) -> None:
    """Two fresh policies that live through the same say the same: no clock, no chance, no memory between instances."""

    @settings(deadline=None, max_examples=examples(50))
    @given(moves=_moves(), pool=_pools())
    def check(moves: list[_Move], pool: list[Request]) -> None:
        stories = []
        for _ in range(2):
            scheduler = Scheduler(Policies(make(), Greedy(), LatestAdmitted(), _stamps(pool)))
            game = _Game([scheduler], [copy(request) for request in pool])
            story = []
            for move in moves:
                game.play(move)
                story.append((_id(scheduler.head(game.now)), scheduler.queue.stands_until(game.now)))
            stories.append(story)
        assert stories[0] == stories[1]

    check()


def equals_keep_the_order_of_arrival(make: MakeOrdering) -> None:
    """Of requests that look alike the first to come is served first, though lengths are learned between them.

    An ordering that goes by the id (by lot, say) has no equals.
    """

    # Four times as many as the others: a tie between requests whose estimates have moved is rare.
    @settings(deadline=None, max_examples=examples(200))
    @given(
        moves=_moves(),
        shapes=st.lists(requests(), min_size=1, max_size=2),
        picks=st.lists(st.integers(0, 1), min_size=2, max_size=9),
        lengths=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    )
    def check(moves: list[_Move], shapes: list[Request], picks: list[int], lengths: list[int]) -> None:
        pool = [copy(shapes[pick % len(shapes)]) for pick in picks]
        prediction = DriftingPrediction(lengths)
        fast = Scheduler(Policies(make(), Greedy(), LatestAdmitted(), prediction))
        naive = NaiveScheduler(make(), DriftingPrediction(lengths))
        game = _Game([fast, naive], pool)
        for move in moves:
            game.play(move)
            head = fast.head(game.now)
            assert _id(head) == _id(naive.head(game.now))
            if head is not None and head.id not in game.preempted:  # those come back in front, the latest first
                passed = [other for other in game.waiting if _look_alike(other, head) and other.id < head.id]  # type: ignore[operator]
                assert not passed, f"{head!r} is next although its equal {passed[0]!r} came first"

    if not _goes_by_the_id(make):
        check()


def _goes_by_the_id(make: MakeOrdering) -> bool:
    ordering = make()
    ranks = set()
    for number in range(8):
        request = Request(number, 0.0, 10)
        request.estimate = PointEstimate(5, "drawn")
        lane = ordering.lane(request) if isinstance(ordering, LanedOrdering) else None
        ranks.add((lane, ordering.rank(request)))
    return len(ranks) > 1


def _look_alike(one: Request, other: Request) -> bool:
    seen = [name for name in Request.__slots__ if name not in ("id", "arrived_at", "estimate")]
    return all(getattr(one, name) == getattr(other, name) for name in seen)


def _laned(make: MakeOrdering) -> LanedOrdering:
    ordering = make()
    assert isinstance(ordering, LanedOrdering), f"{type(ordering).__name__} has no lanes: hold it to laws.RANKED"
    return ordering


class _AnyScheduler(Protocol):
    """What `Scheduler` and `NaiveScheduler` have in common."""

    @property
    def queue(self) -> ClassQueue | NaiveQueue: ...
    def arrive(self, request: Request, now: float) -> None: ...
    def head(self, now: float) -> Request | None: ...
    def admit(self, now: float) -> Request: ...
    def preempted(self, request: Request, now: float) -> None: ...
    def first_token(self, request: Request, now: float) -> None: ...
    def complete(self, request: Request, now: float) -> None: ...
    def cancel(self, request_id: RequestId, now: float) -> Request | None: ...


class _Move(NamedTuple):
    kind: str
    wait_seconds: float
    pick: int


def _moves() -> st.SearchStrategy[list[_Move]]:
    # Enough arrivals that two lanes wait in most lives: with fewer, one run in ten missed a broken `choose`.
    kinds = ["arrive"] * 6 + ["admit"] * 3 + ["decode", "decode", "complete", "preempt", "late", "cancel", "look"]
    move = st.builds(_Move, st.sampled_from(kinds), st.sampled_from(GAPS_SECONDS), st.integers(0, 20))
    return st.lists(move, min_size=4, max_size=24)


def _pools() -> st.SearchStrategy[list[Request]]:
    return st.lists(requests(), min_size=1, max_size=9)


def _stamps(pool: Sequence[Request]) -> StampedPrediction:
    return StampedPrediction({number: r.estimate for number, r in enumerate(pool) if r.estimate is not None})


def _id(request: Request | None) -> RequestId | None:
    return None if request is None else request.id


class _Game:
    """The same life played to one or two schedulers; requests come from a pool, in its order."""

    def __init__(self, schedulers: Sequence[_AnyScheduler], pool: Sequence[Request]) -> None:
        self.now = 0.0
        self._schedulers = schedulers
        self._outside = list(pool)
        self._waiting: list[Request] = []
        self._running: list[Request] = []
        self._arrivals = 0
        self.preempted: set[RequestId] = set()

    @property
    def waiting(self) -> Sequence[Request]:
        """The requests that wait."""
        return self._waiting

    @property
    def naive_queue(self) -> NaiveQueue:
        """The waiting queue of the last scheduler, which must be a naive one."""
        scheduler = self._schedulers[-1]
        assert isinstance(scheduler, NaiveScheduler)
        return scheduler.queue

    def play(self, move: _Move) -> None:
        """Let time pass, then do what the move says if it can be done."""
        self.now += move.wait_seconds
        if move.kind == "arrive" and self._outside:
            self._arrive()
        elif move.kind == "admit" and self._waiting:
            self._admit()
        elif move.kind == "cancel" and self._waiting:
            request = self._waiting.pop(move.pick % len(self._waiting))
            taken = [scheduler.cancel(request.id, self.now) for scheduler in self._schedulers]
            assert all(other is request for other in taken), f"{request!r} waits and was not found"
        elif move.kind == "decode":
            self._decode(1 + move.pick)
        elif move.kind in ("complete", "preempt") and self._running:
            self._stop(self._running[move.pick % len(self._running)], move.kind)
        elif move.kind == "late":
            self._end_late(move.pick)

    def _arrive(self) -> None:
        request = self._outside.pop(0)
        request.id, request.arrived_at, request.produced_tokens = self._arrivals, self.now, 0
        if request.deadline is not None:
            request.deadline += self.now
        if request.later_deadlines is not None:
            request.later_deadlines = request.later_deadlines.moved(self.now)
        self._arrivals += 1
        self._waiting.append(request)
        for scheduler in self._schedulers:
            scheduler.arrive(request, self.now)

    def _admit(self) -> None:
        heads = [scheduler.head(self.now) for scheduler in self._schedulers]
        popped = [scheduler.admit(self.now) for scheduler in self._schedulers]
        request = popped[0]
        assert all(other is request for other in (*heads, *popped)), f"heads {heads}, then taken {popped}"
        assert request in self._waiting, f"{request!r} does not wait"
        self._waiting.remove(request)
        self._running.append(request)

    def _decode(self, steps: int) -> None:
        for request in self._running:
            first = request.produced_tokens == 0
            request.produced_tokens += steps
            for scheduler in self._schedulers:
                if first:
                    scheduler.first_token(request, self.now)

    def _stop(self, request: Request, kind: str) -> None:
        if kind == "complete" and request.produced_tokens == 0:
            return
        self._running.remove(request)
        if kind == "preempt":
            self._waiting.append(request)
            self.preempted.add(request.id)
        for scheduler in self._schedulers:
            if kind == "preempt":
                scheduler.preempted(request, self.now)
            else:
                scheduler.complete(request, self.now)

    def _end_late(self, pick: int) -> None:
        """One that was preempted gets its last token all the same: it was on its way."""
        paused = [request for request in self._waiting if request.produced_tokens > 0]
        if not paused:
            return
        request = paused[pick % len(paused)]
        request.produced_tokens += 1
        self._waiting.remove(request)
        for scheduler in self._schedulers:
            assert scheduler.queue.remove(request.id) is request, f"{request!r} waits and was not found"
            scheduler.complete(request, self.now)
