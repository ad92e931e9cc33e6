"""The questions a policy answers, one per contract.

A policy is a plain object with the methods of its contract; nothing is inherited. Whatever else it needs it takes in
its constructor. A policy that also has `observe(event)` (see `headway.domain.event.Listener`) is told every event.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Protocol, TypeAlias, runtime_checkable

from headway.domain.estimate import LengthEstimate
from headway.domain.replica_view import BatchView, MemoryView, ReplicaView
from headway.domain.request import RequestView

LaneId: TypeAlias = Hashable
Rank: TypeAlias = float | tuple[float, ...]

UNTIL_THE_BATCH_CHANGES = 1 << 62
"""For `AdmissionPolicy.hold_steps`: no number of steps helps while the same requests run."""


@runtime_checkable
class RankedOrdering(Protocol):
    """Who goes next, when the answer is fixed as a request enters: a number each, lower sooner."""

    def rank(self, request: RequestView) -> Rank:
        """Asked once at entry, and again when a preempted request comes back. Ties go to the earlier arrival."""


@runtime_checkable
class LanedOrdering(Protocol):
    """Who goes next, when the answer moves with time: a few lanes, each in a fixed order; only heads are compared."""

    def lane(self, request: RequestView) -> LaneId:
        """Which lane it joins; asked once at entry, before `rank`."""

    def rank(self, request: RequestView) -> Rank:
        """Its place inside the lane, lower sooner; ties go to the earlier arrival. Return 0 for first-come."""

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The lane to serve now, of those with somebody waiting (never empty). Must not change the policy."""

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """Earliest time after `now` at which `choose` might answer otherwise for the same heads; `math.inf` if never.

        Too early costs time, too late costs correctness: return `now` when in doubt.
        """


@runtime_checkable
class RedrawnOrdering(LanedOrdering, Protocol):
    """A laned ordering that learns its lanes: now and then everybody waiting belongs elsewhere."""

    @property
    def redrawn(self) -> int:
        """How often the lanes were redrawn; it may change in `observe` and nowhere else that the queue is not told of.

        When it has changed, everybody waiting is asked for `lane` and `rank` again, in order of arrival, before the
        next choice. Who was preempted and waits in front of all lanes is not.
        """


OrderingPolicy: TypeAlias = RankedOrdering | LanedOrdering


class AdmissionPolicy(Protocol):
    """May the head of the queue join the running batch now, beyond what the engine itself checks?

    The engine's own gates (seats, token budget, free blocks for the whole prompt) come on top of this one.
    """

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 admits. n ≥ 1 refuses, and says that while the same batch runs the answer stays no for n steps.

        1 is always a right refusal; more lets the caller skip. An empty batch must be answered with 0, or nothing
        would ever run.
        """


@runtime_checkable
class BackfillingAdmission(AdmissionPolicy, Protocol):
    """An admission policy under which others may pass a head that does not fit."""

    @property
    def look_ahead(self) -> int:
        """How many requests behind the head are looked at."""

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        """Whether `request` may be served before `head`, which was refused by the engine or by `hold_steps`.

        It still has to get through both itself. The batch is not empty.
        """

    def passed(self, head: RequestView) -> None:
        """Somebody has passed `head` and runs."""


class PreemptionPolicy(Protocol):
    """Who gives way when a running request needs a block and none is free?"""

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """One of `running` (never empty, in order of admission). All its KV is lost and recomputed later."""


class LengthPredictor(Protocol):
    """How long will it be? Stamps an estimate on each request at entry; learns by `observe` if it has it."""

    def predict(self, request: RequestView) -> LengthEstimate:
        """The estimate for a request that has produced nothing yet."""


class RoutingPolicy(Protocol):
    """Where does a request run, when several replicas have room for it?

    A policy that also has `routed(request, prefix, replica)` is told of every dispatch; nothing else may change it.
    """

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView | None:
        """One of `replicas` (never empty: those alive with room, in a fixed order), or None to let the request wait.

        Args:
            request: who is to run.
            prefix: hashes of ever longer prefixes of its prompt, the shortest first; empty where unknown.
            replicas: whom it may run on.
            now: seconds on the shell's clock.
        """
