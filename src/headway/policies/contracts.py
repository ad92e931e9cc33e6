"""The contracts of policies: the one question each kind answers, and the optional powers a policy may add.

A policy is a plain object with the methods of its contract. It inherits nothing. What else it needs it takes as
keyword-only arguments of its constructor. The six contracts are `RankedOrdering` or `LanedOrdering`,
`AdmissionPolicy`, `PreemptionPolicy`, `LengthPredictor`, `RoutingPolicy` and `ReschedulingPolicy`.

A policy gains an optional power by having its methods; nothing is registered:

| power                | members                       | effect                                                        |
|----------------------|-------------------------------|---------------------------------------------------------------|
| `Listener`           | `observe`, perhaps `hears`    | any policy: receives events (`headway.domain.event`)          |
| `RedrawnOrdering`    | `redrawn`                     | ordering: moves waiting requests to other lanes               |
| `FollowsWhatIsLearned` | `follows_what_is_learned`   | ordering: equals are served in order of arrival               |
| `BackfillingAdmission` | `look_ahead`, `may_pass`, `passed` | admission: lets requests pass a head that does not fit |
| `LossListener`       | `memory_lost`                 | admission: hears of preemptions that an engine only counts    |
| `DispatchListener`   | `routed`                      | routing: receives every dispatch                              |
| `Stateful`           | `state`, `restore`            | ordering, prediction: what was learned survives a restart     |
| `DeclaresTunables`   | `TUNABLE`                     | any policy class: options that `headway tune` may search      |
| `Retunable`          | `retune`                      | ordering: new option values while requests wait               |
| `DeclaresNeeds`      | `NEEDS`                       | any policy class: what the place must give it, see `Need`     |

An estimate has optional powers too: `SurvivalEstimate`, `SurvivalCurveEstimate` and `MovingEstimate` in
`headway.domain.estimate`. Powers are looked up once, when a scheduler is built: add no method later.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from enum import StrEnum
from typing import ClassVar, NamedTuple, Protocol, TypeAlias, runtime_checkable

from headway.domain.estimate import LengthEstimate
from headway.domain.event import Listener
from headway.domain.replica_view import BatchView, MemoryView, OccupiedReplica, ReplicaView
from headway.domain.request import RequestView
from headway.policies.tunable import Tunable

LaneId: TypeAlias = Hashable
Rank: TypeAlias = float | tuple[float, ...]

UNTIL_THE_BATCH_CHANGES = 1 << 62
"""For `AdmissionPolicy.hold_steps`: no number of steps helps while the same requests run."""

__all__ = [
    "UNTIL_THE_BATCH_CHANGES",
    "AdmissionPolicy",
    "BackfillingAdmission",
    "DeclaresNeeds",
    "DeclaresTunables",
    "DispatchListener",
    "FollowsWhatIsLearned",
    "LaneId",
    "LanedOrdering",
    "LengthPredictor",
    "Listener",
    "LossListener",
    "Move",
    "Need",
    "OrderingPolicy",
    "PreemptionPolicy",
    "Rank",
    "RankedOrdering",
    "RedrawnOrdering",
    "ReschedulingPolicy",
    "Retunable",
    "RoutingPolicy",
    "Stateful",
]


@runtime_checkable
class RankedOrdering(Protocol):
    """Which request runs next, when the answer is fixed at entry: a rank for each request, lower sooner."""

    def rank(self, request: RequestView) -> Rank:
        """The request's rank; ties go to the earlier arrival.

        Asked at entry, when a preempted request returns, and when the cache holds much more or less of the head.
        """


@runtime_checkable
class LanedOrdering(Protocol):
    """Which request runs next, when the answer moves with time: a few lanes, of which only the heads are compared."""

    def lane(self, request: RequestView) -> LaneId:
        """The lane the request joins. Asked before `rank`."""

    def rank(self, request: RequestView) -> Rank:
        """The request's place inside its lane, lower sooner. Ties: earlier arrival. Return 0 for FCFS in the lane."""

    def choose(self, heads: Mapping[LaneId, RequestView], now: float) -> LaneId:
        """The lane to serve now: a key of `heads`, which is never empty. Must not change the policy."""

    def next_change(self, heads: Mapping[LaneId, RequestView], now: float) -> float:
        """Earliest time after `now` at which `choose` might answer otherwise for the same heads; `math.inf` if never.

        Too early costs time, too late costs correctness: return `now` when in doubt.
        """


@runtime_checkable
class RedrawnOrdering(LanedOrdering, Protocol):
    """Optional power of a laned ordering that learns its lanes: it may move all waiting requests to other lanes."""

    @property
    def redrawn(self) -> int:
        """How often the lanes were redrawn. May change in `observe` and `retune` only.

        After a change the queue asks every waiting request's `lane` and `rank` again, in order of arrival, before the
        next choice. Preempted requests, which wait in front of all lanes, are not asked about.
        """


OrderingPolicy: TypeAlias = RankedOrdering | LanedOrdering


@runtime_checkable
class FollowsWhatIsLearned(Protocol):
    """Optional power of an ordering: its ranks or lanes follow estimates, or what it learns itself.

    Then a later request may rank before an equal one that waits. Where the property is true the queue serves the first
    to come of the two in its stead.
    """

    @property
    def follows_what_is_learned(self) -> bool:
        """Whether it does so with its options. Never changes."""


class AdmissionPolicy(Protocol):
    """May the head of the queue join the running batch now, beyond what the engine itself checks?

    The engine's own gates (seats, token budget, free blocks for the whole prompt) come on top of this one.
    """

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 admits. n ≥ 1 refuses: while the same batch runs, the answer stays no for n steps.

        1 is always a right refusal; more lets the caller skip. An empty batch must be answered with 0, or nothing
        would ever run.
        """


@runtime_checkable
class BackfillingAdmission(AdmissionPolicy, Protocol):
    """Optional power of an admission policy: other requests may pass a head that does not fit."""

    @property
    def look_ahead(self) -> int:
        """How many requests behind the head are considered."""

    def may_pass(
        self, request: RequestView, head: RequestView, batch: BatchView, memory: MemoryView, now: float
    ) -> bool:
        """Whether `request` may be served before `head`, which the engine or `hold_steps` refused.

        `request` still has to pass both checks itself. The batch is not empty.
        """

    def passed(self, head: RequestView) -> None:
        """Record that a request passed `head` and runs."""


@runtime_checkable
class LossListener(Protocol):
    """Optional power of an admission policy that learns from preemptions: a count is enough for it.

    Where a shell knows which request was preempted it delivers `Preempted` instead.
    """

    def memory_lost(self, tokens: int) -> None:
        """Record that the engine preempted requests that held about so many tokens without a cached copy."""


class PreemptionPolicy(Protocol):
    """Which running request is preempted when another needs a KV block and none is free?"""

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """One of `running` (never empty, in order of admission).

        It gives up its KV. What a prefix cache has not kept of it by the time it runs again is computed again.
        """


class LengthPredictor(Protocol):
    """How many output tokens will a request produce? The answer is stamped on each request at entry.

    A predictor learns by being a `Listener`.
    """

    def predict(self, request: RequestView) -> LengthEstimate:
        """The estimate for a request that has produced nothing yet. Asking must not change the predictor."""


class RoutingPolicy(Protocol):
    """On which replica does a request run, when several have room for it?

    Only `routed` (see `DispatchListener`) may change the policy.
    """

    def choose(
        self, request: RequestView, prefix: Sequence[int], replicas: Sequence[ReplicaView], now: float
    ) -> ReplicaView | None:
        """One of `replicas`, or None to let the request wait.

        Args:
            request: the request to place.
            prefix: hashes of ever longer prefixes of its prompt, the shortest first; empty where unknown.
            replicas: the healthy replicas with room, in a fixed order; never empty.
            now: seconds on the shell's clock.
        """


@runtime_checkable
class DispatchListener(Protocol):
    """Optional power of a routing policy: it receives every dispatch."""

    def routed(self, request: RequestView, prefix: Sequence[int], replica: ReplicaView) -> None:
        """Record that `request` was sent to `replica`. `prefix` is what `choose` was given."""


class Move(NamedTuple):
    """A request is to go from one replica to another: to be taken back if it waits there, migrated if it runs."""

    source: OccupiedReplica
    destination: OccupiedReplica
    request: RequestView


class ReschedulingPolicy(Protocol):
    """Which requests go elsewhere after they were sent to a replica?"""

    @property
    def period_seconds(self) -> float:
        """How often it is asked, seconds; `math.inf` for never. Never changes."""

    @property
    def moves_max(self) -> int:
        """Most moves that one answer has. Never changes."""

    def moves(self, replicas: Sequence[OccupiedReplica], now: float) -> Sequence[Move]:
        """The moves to make now, each request in one of them at most. Must not change the policy.

        Only requests that `may_move` may be named, of `waiting` or of `running` of the source; the two replicas differ,
        and the destination is not draining and `could_take` the request. What began or ended since `contents_as_of`
        stays where it is.

        Args:
            replicas: those that are up, in a fixed order.
            now: seconds on the shell's clock.
        """


@runtime_checkable
class Stateful(Protocol):
    """Optional power of an ordering or a predictor: what it learned survives a restart."""

    def state(self) -> Mapping[str, object]:
        """What was learned, as plain values that JSON can hold."""

    def restore(self, state: Mapping[str, object]) -> None:
        """Continue from what `state` returned; called before the first request.

        Raises:
            ValueError: the state does not fit this policy. The policy must then be as new. One sentence.
        """


class Need(StrEnum):
    """What a policy may need of the place that asks it, beyond the requests, their estimates and their events."""

    STEPS = "engine steps"
    """`BatchView.decode_steps` and the tokens of running requests, as of now."""
    MEMORY = "KV memory"
    """`MemoryView`: the whole."""
    MEMORY_IN_USE = "KV memory in use"
    """`MemoryView`: what is free."""
    PREEMPTIONS = "preemptions"
    """Every preemption in the engine."""
    BEHIND_HEAD = "requests behind the head"
    """Requests other than the head can be admitted."""
    CACHED_TOKENS = "cached prompt tokens"
    """How much of a waiting prompt the prefix cache holds."""
    SHARED_PREFIXES = "shared prefixes"
    """`RequestView.prefix_hashes`."""
    VICTIMS = "the choice of a victim"
    """Its answer decides which request is preempted."""
    REPLICAS = "the choice of a replica"
    """Its answer decides where a request runs."""
    MOVES_OF_WAITING = "moves of waiting requests"
    """What was sent to a replica and has not begun there can be sent elsewhere."""
    MOVES_OF_RUNNING = "moves of running requests"
    """A running request can go on at another replica, with its KV memory."""
    TRUE_LENGTHS = "true output lengths"
    """The truth, before it happens."""


@runtime_checkable
class DeclaresNeeds(Protocol):
    """Optional power of a policy class: it names what the place that asks it must give it."""

    NEEDS: ClassVar[frozenset[Need]]


@runtime_checkable
class DeclaresTunables(Protocol):
    """Optional power of a policy class: it names the options that a tuner may search over."""

    TUNABLE: ClassVar[tuple[Tunable, ...]]


@runtime_checkable
class Retunable(Protocol):
    """Optional power of an ordering: its options may change while requests wait."""

    def retune(self, values: Mapping[str, float]) -> None:
        """Take new values of the options named; the next choice uses them.

        Raises:
            ValueError: an option cannot be changed, or a value is out of range. Nothing was changed then.
        """


def follows_what_is_learned(ordering: OrderingPolicy) -> bool:
    """Whether equals may get ranks that are not in order of arrival; False for an ordering that does not say."""
    return isinstance(ordering, FollowsWhatIsLearned) and ordering.follows_what_is_learned


def tunables(policy: type) -> tuple[Tunable, ...]:
    """The options that a policy class declares in `TUNABLE`; () if it declares none."""
    return policy.TUNABLE if isinstance(policy, DeclaresTunables) else ()


def needs(policy: type) -> frozenset[Need]:
    """What a policy class declares in `NEEDS`; nothing if it declares none."""
    return policy.NEEDS if isinstance(policy, DeclaresNeeds) else frozenset()
