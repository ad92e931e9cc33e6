"""Rescheduler of a simulated fleet: asks the policy at its times, and keeps the migrations that are under way.

It decides and knows no engine, as the router does. Both clocks carry out what it orders: what waits is taken back at
once; a running request is copied in stages while it goes on, stops for the last stage at its engine's next step, and
goes on elsewhere when that stage has landed (Llumnix, arXiv 2406.03243, section 4.2).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple, TypeAlias, overload

from headway.domain.replica_view import OccupiedReplica, ReplicaView, SentRequest
from headway.domain.request import Request, RequestView
from headway.policies.contracts import Move, ReschedulingPolicy
from headway.simulator.arrivals import FOREVER
from headway.simulator.replica_ledger import Instant, ReplicaLedger
from headway.simulator.step_time import PS_PER_SECOND

MOVES_MAX = 3
"""Moves of one request while it runs, at most. What waits is moved once: two replicas are tried, as in the gateway."""

_STAGES_MAX = 3
_LAST_STAGE_BLOCKS = 16
"""Of Llumnix' code: at most so many stages, and fewer blocks than these are copied in the last one."""


@dataclass(frozen=True, slots=True)
class KvLink:
    """What copies KV memory from one replica to another.

    Attributes:
        bytes_per_second: of one copy.
        stage_seconds: that each stage costs beside its bytes.
    """

    bytes_per_second: float = 8e9  # 64 Gb/s, the network of Llumnix' testbed
    stage_seconds: float = 0.005  # an assumption: two round trips and the gathering of blocks


class TakeBackOrder(NamedTuple):
    """A request that waits at `source` goes to `destination` now."""

    row: int
    source: int
    destination: int


class HandOverOrder(NamedTuple):
    """The engine of `source` is to stop a running request at its next step, and to say so to the rescheduler."""

    row: int
    source: int


class LandOrder(NamedTuple):
    """A request that `source` handed over goes on at `destination` now: all of its KV memory is there."""

    row: int
    source: int
    destination: int


MoveOrder: TypeAlias = TakeBackOrder | HandOverOrder | LandOrder


class _Contents(NamedTuple):
    """What is at a replica."""

    waiting: list[SentRequest]
    running: list[SentRequest]
    at: float


class _LaterList(Sequence[SentRequest]):
    """A list that is made when it is first read."""

    def __init__(self, make: Callable[[], list[SentRequest]]) -> None:
        self._make = make

    @overload
    def __getitem__(self, place: int) -> SentRequest: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[SentRequest]: ...
    def __getitem__(self, place: int | slice) -> SentRequest | Sequence[SentRequest]:
        return self._make()[place]

    def __len__(self) -> int:
        return len(self._make())

    def __iter__(self) -> Iterator[SentRequest]:
        return iter(self._make())


class _Migration:
    """A running request on its way; `until_ps` ends the stage, `FOREVER` while its engine is to hand it over."""

    __slots__ = ("copied_tokens", "destination", "is_stopped", "row", "source", "stages", "until_ps")

    def __init__(self, row: int, source: int, destination: int) -> None:
        self.row = row
        self.source = source
        self.destination = destination
        self.copied_tokens = 0
        self.stages = 0
        self.until_ps = FOREVER
        self.is_stopped = False


class Rescheduler:
    """The rescheduler of one day.

    Attributes:
        next_ps: when there is something to do next, picoseconds; `FOREVER` if there is nothing.
        moves: made so far.
    """

    def __init__(
        self,
        policy: ReschedulingPolicy,
        ledgers: Sequence[ReplicaLedger],
        views: Sequence[ReplicaView],
        instant: Instant,
        could_take: Callable[[int, Request], bool],
        prefix_ids: Sequence[Sequence[int]] | None,
        kv_bytes_per_token: int,
        link: KvLink,
    ) -> None:
        """A rescheduler.

        Args:
            policy: what is asked.
            ledgers: one for each replica.
            views: what policies may see of each; its own ledger where figures are exact.
            instant: of the clock.
            could_take: whether a replica, by its index, can be sent a request now.
            prefix_ids: of each row.
            kv_bytes_per_token: that a copy moves.
            link: that it moves over.
        """
        self.next_ps = FOREVER
        self.moves = 0
        self._policy = policy
        self._ledgers = ledgers
        self._views = views
        self._instant = instant
        self._could_take = could_take
        self._prefix_ids = prefix_ids
        self._ps_per_token = kv_bytes_per_token / link.bytes_per_second * PS_PER_SECOND
        self._stage_ps = max(1, round(link.stage_seconds * PS_PER_SECOND))
        period = policy.period_seconds
        self._period_ps = FOREVER if period * PS_PER_SECOND >= FOREVER else max(1, round(period * PS_PER_SECOND))
        self._ask_ps = FOREVER
        self._moved: dict[int, int] = {}  # row → moves of it
        self._tried: set[int] = set()  # rows that were lost by a replica, and are tried at their last one
        self._under_way: dict[int, _Migration] = {}  # by row
        self._stage_ends: list[tuple[int, int]] = []  # (when, row); some are out of date
        self._reported: list[_Contents] | None = None
        if any(view is not ledger for view, ledger in zip(views, ledgers, strict=True)):
            self._reported = [_Contents([], [], 0.0) for _ in ledgers]

    # What happens

    def sent(self, now_ps: int) -> None:
        """A request was sent to a replica."""
        if self._ask_ps == FOREVER and self._period_ps < FOREVER:
            self._ask_ps = (now_ps // self._period_ps + 1) * self._period_ps
            self._look_ahead()

    def lost(self, row: int) -> None:
        """A request is tried at its last replica, as the one before failed."""
        self._tried.add(row)

    def was_moved(self, row: int) -> bool:
        """Whether a request is at its second replica already."""
        return row in self._moved

    def ended(self, row: int) -> None:
        """A request ended; nothing is kept of it."""
        if not (self._moved or self._tried or self._under_way):
            return
        self._moved.pop(row, None)
        self._tried.discard(row)
        self._under_way.pop(row, None)

    def failed(self, index: int) -> None:
        """A replica failed: what it was sending is lost, and what was to come there stays, or goes back."""
        for migration in list(self._under_way.values()):
            if migration.source == index or (migration.destination == index and not migration.is_stopped):
                del self._under_way[migration.row]
            elif migration.destination == index:
                migration.destination = migration.source

    def handed_over(self, row: int, at_ps: int | None, kv_tokens: int) -> None:
        """An engine has stopped a request, and its last token there comes out at `at_ps`; None if it could not."""
        migration = self._under_way.get(row)
        if migration is None:
            return
        if at_ps is None:
            del self._under_way[row]
            return
        self._begin_stage(migration, at_ps, kv_tokens - migration.copied_tokens)

    def report(self) -> None:
        """The replicas report what they hold."""
        if self._period_ps < FOREVER:
            self._reported = [self._contents(ledger) for ledger in self._ledgers]

    # What is to be done

    def orders(self, now_ps: int) -> list[MoveOrder]:
        """What is to be done at this instant, in order; to be called where `next_ps` is reached."""
        orders: list[MoveOrder] = []
        while self._stage_ends and self._stage_ends[0][0] <= now_ps:
            until_ps, row = heapq.heappop(self._stage_ends)
            migration = self._under_way.get(row)
            if migration is not None and migration.until_ps == until_ps:
                orders += self._end_stage(migration, now_ps)
        if self._ask_ps <= now_ps:
            orders += self._ask(now_ps)
            is_empty = not any(ledger.requests for ledger in self._ledgers)
            self._ask_ps = FOREVER if is_empty else now_ps + self._period_ps
        self._look_ahead()
        return orders

    def _ask(self, now_ps: int) -> list[MoveOrder]:
        replicas = [self._shown(ledger) for ledger in self._ledgers if ledger.is_up]
        if len(replicas) < 2:
            return []
        moves = self._policy.moves(replicas, self._instant.now)
        if len(moves) > self._policy.moves_max:
            raise ValueError(f"the rescheduling policy made {len(moves)} moves, and promised {self._policy.moves_max}")
        orders: list[MoveOrder] = []
        for move in moves:
            order = self._begin(move, replicas, now_ps)
            if order is not None:
                orders.append(order)
        return orders

    def _shown(self, ledger: ReplicaLedger) -> OccupiedReplica:
        index = ledger.index
        if self._reported is None:
            # Most questions are answered by counts, so the requests are gone through only where a policy looks.
            look = cache(lambda: self._contents(ledger))
            waiting: Sequence[SentRequest] = _LaterList(lambda: look().waiting)
            running: Sequence[SentRequest] = _LaterList(lambda: look().running)
            waits, at = ledger.waiting_requests(), self._instant.now
        else:
            waiting, running, at = self._reported[index]
            waits = len(waiting)
        return OccupiedReplica(
            replica=self._views[index],
            waiting=waiting,
            running=running,
            waiting_requests=waits,
            is_draining=ledger.is_draining,
            contents_as_of=at,
            could_take=lambda request: self._may_take(index, request),
        )

    def _may_take(self, index: int, request: RequestView) -> bool:
        assert isinstance(request, Request)
        return self._could_take(index, request)

    def _contents(self, ledger: ReplicaLedger) -> _Contents:
        """What is at a replica now; a request that was handed over is nowhere for the moment."""
        running = dict(ledger.running())
        fresh = ledger.fresh_rows()
        again: list[SentRequest] = []
        waiting: list[SentRequest] = []
        runs: list[SentRequest] = []
        is_sending = any(one.source == ledger.index for one in self._under_way.values())
        for row in ledger.inside():
            request = ledger.request(row)
            prefix = () if self._prefix_ids is None else self._prefix_ids[row]
            if row in running:
                may_move = (
                    not is_sending
                    and ledger.has_begun(row)
                    and running[row] > 0
                    and self._moved.get(row, 0) < MOVES_MAX
                    and row not in self._under_way
                )
                runs.append(SentRequest(request, prefix, request.prompt_tokens + running[row], may_move))
            elif row in fresh and not ledger.has_begun(row):
                waiting.append(SentRequest(request, prefix, 0, row not in self._moved and row not in self._tried))
            elif row not in self._under_way or not self._under_way[row].is_stopped:  # it may be preempted on its way
                again.append(SentRequest(request, prefix, 0, may_move=False))
        return _Contents(again + waiting, runs, self._instant.now)

    def _begin(self, move: Move, replicas: Sequence[OccupiedReplica], now_ps: int) -> MoveOrder | None:
        """Begin a move; None if it is not possible any more, or takes time.

        Raises:
            ValueError: the policy broke its contract.
        """
        places = [
            next((place for place, one in enumerate(replicas) if one is end), -1)
            for end in (move.source, move.destination)
        ]
        row = move.request.id
        mobile = (*move.source.waiting, *move.source.running) if min(places) >= 0 else ()
        offered = any(sent.request is move.request and sent.may_move for sent in mobile)
        if min(places) < 0 or places[0] == places[1] or not offered:
            raise ValueError(f"the rescheduling policy moved request {row!r}, which may not move so")
        assert isinstance(row, int)
        up = [ledger for ledger in self._ledgers if ledger.is_up]
        source, destination = up[places[0]], up[places[1]]
        if not source.holds(row) or not self._could_take(destination.index, source.request(row)):
            return None
        if any(sent.request is move.request for sent in move.source.waiting):
            if source.has_begun(row) or row not in source.fresh_rows():
                return None  # it has begun since the replica reported
            self._moved[row] = 1
            self._put(row, source, destination)
            return TakeBackOrder(row, source.index, destination.index)
        busy = [end for one in self._under_way.values() for end in (one.source, one.destination)]
        if source.index not in busy and destination.index not in busy:
            tokens = dict(source.running()).get(row)
            if tokens:
                migration = self._under_way[row] = _Migration(row, source.index, destination.index)
                self._begin_stage(migration, now_ps, source.request(row).prompt_tokens + tokens - 1)
        return None

    def _put(self, row: int, source: ReplicaLedger, destination: ReplicaLedger) -> None:
        begun = source.has_begun(row)
        destination.enter(row, source.leave(row), begun=begun)
        self.moves += 1

    # Stages of a migration

    def _begin_stage(self, migration: _Migration, now_ps: int, tokens: int) -> None:
        migration.copied_tokens += tokens
        migration.stages += 1
        migration.until_ps = now_ps + self._stage_ps + round(max(0, tokens) * self._ps_per_token)
        heapq.heappush(self._stage_ends, (migration.until_ps, migration.row))
        self._look_ahead()

    def _end_stage(self, migration: _Migration, now_ps: int) -> list[MoveOrder]:
        row, source = migration.row, self._ledgers[migration.source]
        if migration.is_stopped:
            del self._under_way[row]
            destination = self._ledgers[migration.destination]
            self._moved[row] = self._moved.get(row, 0) + 1
            self._put(row, source, destination)
            return [LandOrder(row, source.index, destination.index)]
        tokens = dict(source.running()).get(row)
        if not tokens or not self._could_go_on(migration, source.request(row)):
            del self._under_way[row]  # it was preempted, or there is no place for it any more
            return []
        left = source.request(row).prompt_tokens + tokens - 1 - migration.copied_tokens
        last = _LAST_STAGE_BLOCKS * source.rules.block_tokens
        if left < last or migration.stages >= _STAGES_MAX - 1:
            migration.is_stopped = True
            migration.until_ps = FOREVER
            return [HandOverOrder(row, source.index)]
        self._begin_stage(migration, now_ps, left)
        return []

    def _could_go_on(self, migration: _Migration, request: Request) -> bool:
        return self._could_take(migration.destination, request)

    def _look_ahead(self) -> None:
        self.next_ps = self._ask_ps
        if self._stage_ends and self._stage_ends[0][0] < self.next_ps:
            self.next_ps = self._stage_ends[0][0]
