"""Naive queue and scheduler: the plain model that the fast ones must equal."""

from __future__ import annotations

from itertools import count

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken, Listener, Preempted
from headway.domain.request import Request, RequestId
from headway.policies.contracts import LanedOrdering, LaneId, LengthPredictor, OrderingPolicy, Rank, RedrawnOrdering
from headway.scheduling.queue import Resumed

_LOOKS = [name for name in Request.__slots__ if name not in ("id", "arrived_at", "estimate")]


class NaiveQueue:
    """A list, searched from end to end at every question; asks the ordering again each time. O(waiting) a call."""

    def __init__(
        self, ordering: OrderingPolicy, resumed: Resumed = "front", prediction: LengthPredictor | None = None
    ) -> None:
        self._ordering = ordering
        self._prediction = prediction if getattr(ordering, "follows_what_is_learned", False) else None
        self._resumed = resumed
        self._waiting: list[tuple[LaneId, Rank, float, int, Request]] = []
        self._front: list[Request] = []
        self._ticket = count()
        self._drawing = ordering.redrawn if isinstance(ordering, RedrawnOrdering) else 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._front)

    def ids(self) -> set[RequestId]:
        """The ids of all waiting requests."""
        return {entry[4].id for entry in self._waiting} | {request.id for request in self._front}

    def add(self, request: Request) -> None:
        """Append it with its lane, rank and ticket."""
        lane = self._ordering.lane(request) if isinstance(self._ordering, LanedOrdering) else None
        rank = self._ordering.rank(request)
        self._waiting.append((lane, rank, request.arrived_at, next(self._ticket), request))

    def resume(self, request: Request) -> None:
        """In front, or by rank."""
        if self._resumed == "front":
            self._front.append(request)
        else:
            self.add(request)

    def reconsider(self) -> None:
        """Ask for every lane and rank again, in order of arrival, if the lanes were redrawn."""
        ordering = self._ordering
        if isinstance(ordering, RedrawnOrdering) and ordering.redrawn != self._drawing:
            self._drawing = ordering.redrawn
            self._waiting = [
                (ordering.lane(request), ordering.rank(request), arrived_at, ticket, request)
                for _, _, arrived_at, ticket, request in sorted(self._waiting, key=lambda entry: entry[2:4])
            ]

    def heads(self) -> dict[LaneId, Request]:
        """The first of each lane. The lanes come newest first: an ordering must not lean on their order."""
        heads: dict[LaneId, Request] = {}
        for lane in reversed(list(dict.fromkeys(entry[0] for entry in self._waiting))):
            heads[lane] = min((entry for entry in self._waiting if entry[0] == lane), key=lambda entry: entry[1:4])[4]
        return heads

    def head(self, now: float) -> Request | None:
        """The next request."""
        if self._front:
            return self._front[-1]
        heads = self.heads()
        if not heads:
            return None
        lane = self._ordering.choose(heads, now) if isinstance(self._ordering, LanedOrdering) else None
        chosen = heads[lane]
        equals = [entry[2:] for entry in self._waiting if self._are_equal(entry[4], chosen)]
        return min(equals, key=lambda entry: entry[:2])[2] if equals else chosen

    def _are_equal(self, one: Request, other: Request) -> bool:
        """Whether neither a policy that looks nor the predictor can tell them apart."""
        if self._prediction is None or any(getattr(one, name) != getattr(other, name) for name in _LOOKS):
            return False
        mean_tokens, others = (self._prediction.predict(request).remaining_mean(0) for request in (one, other))
        return mean_tokens == others

    def remove(self, request_id: RequestId) -> Request | None:
        """Take one out."""
        for request in self._front:
            if request.id == request_id:
                self._front.remove(request)
                return request
        for entry in self._waiting:
            if entry[4].id == request_id:
                self._waiting.remove(entry)
                return entry[4]
        return None


class NaiveScheduler:
    """What `headway.scheduling.scheduler.Scheduler` does with an ordering and a predictor, over a `NaiveQueue`."""

    def __init__(self, ordering: OrderingPolicy, prediction: LengthPredictor, resumed: Resumed = "front") -> None:
        self.queue = NaiveQueue(ordering, resumed, prediction)
        self._ordering = ordering
        self._prediction = prediction

    def arrive(self, request: Request, now: float) -> None:
        """A request arrives: predict its length, queue it."""
        request.estimate = self._prediction.predict(request)
        self.queue.add(request)
        self._deliver(Arrived(request, now))

    def head(self, now: float) -> Request | None:
        """The request to run next."""
        return self.queue.head(now)

    def admit(self, now: float) -> Request:
        """The head joins a batch."""
        request = self.queue.head(now)
        if request is None:
            raise IndexError("the queue is empty")
        self.queue.remove(request.id)
        self._deliver(Admitted(request, now))
        return request

    def preempted(self, request: Request, now: float) -> None:
        """A running request waits again."""
        self.queue.resume(request)
        self._deliver(Preempted(request, now))

    def first_token(self, request: Request, now: float) -> None:
        """A first token came out."""
        self._deliver(FirstToken(request, now))

    def complete(self, request: Request, now: float) -> None:
        """A last token came out."""
        self._deliver(Completed(request, now, request.produced_tokens))

    def cancel(self, request_id: RequestId, now: float) -> Request | None:
        """A waiting request's client left."""
        request = self.queue.remove(request_id)
        if request is not None:
            self._deliver(Cancelled(request, now))
        return request

    def _deliver(self, event: Event) -> None:
        both = {id(policy): policy for policy in (self._prediction, self._ordering)}
        for policy in both.values():
            if isinstance(policy, Listener):  # not by `EventFanout`: the model shares no code with what it checks
                policy.observe(event)
        self.queue.reconsider()
