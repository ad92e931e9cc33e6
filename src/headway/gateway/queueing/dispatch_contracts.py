"""Contracts of the dispatcher and its queues with those around them: relays, observers, and what makes the queues."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.model_queue import CachedTokensOf, Prepare
from headway.gateway.queueing.refusals import Refusal
from headway.gateway.queueing.request_state import GatewayRequest, QueuedRequest, QueueKey
from headway.gateway.replicas.upstream_replica import UpstreamReplica


class Relay(Protocol):
    """What carries one request to a replica and the answer back; an `Exchange`."""

    @property
    def request(self) -> GatewayRequest:
        """The request it carries."""

    def dispatch(self, replica: UpstreamReplica) -> None:
        """Send the request; the answer comes back by itself."""

    def refuse(self, refusal: Refusal) -> None:
        """Answer with an error; nothing was sent to the client before."""

    def withdraw(self, destination: UpstreamReplica) -> bool:
        """Take the request back from its replica, for another one. False if it may not be sent once more."""

    def check_silence(self, now: float) -> None:
        """Give up on a replica that has sent nothing for too long."""

    def cut_off(self, refusal: Refusal) -> None:
        """End the request now: with this refusal, or an answer that has begun with an error."""

    def break_off(self) -> None:
        """End the request after an internal error: answer 500, or cut the answer short."""


class RequestObserver(Protocol):
    """Takes note of requests: metrics, logs, traces. It may be a `DispatchObserver` too."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """A request ended."""


@runtime_checkable
class DispatchObserver(Protocol):
    """Takes note of dispatches too."""

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """A request left its queue for a replica."""


class RequestSender(Protocol):
    """What carries out the choices; the `Dispatcher`."""

    def send(self, queued: QueuedRequest, replica: UpstreamReplica, now: float) -> None:
        """Send a request that has just left its queue."""

    def give_up(self, queued: QueuedRequest, failed: UpstreamReplica) -> None:
        """Refuse a waiting request: only the replica that failed it is left."""


@dataclass(frozen=True, slots=True)
class QueueHooks:
    """What the queues ask of their surroundings, or tell them.

    Attributes:
        prepare: gets the fresh policies of every queue, see `ModelQueue`.
        forget: hears of a queue that goes.
        held: hears for how many steps of a replica a request was refused there; `pump` is to be called then.
        go_on_soon: calls back at the next turn of the event loop; None where work need not be divided.
        cached_tokens: see `ModelQueue`.
        later: calls back after so many seconds; None where nothing waits before its second try.
        may_serve: whether this gateway is the one that serves; else requests are refused, those that wait too.
    """

    prepare: Prepare = lambda key, chosen, policies: ()
    forget: Callable[[QueueKey], None] = lambda key: None
    held: Callable[[UpstreamReplica, int], None] = lambda replica, steps: None
    go_on_soon: Callable[[Callable[[], None]], object] | None = None
    cached_tokens: CachedTokensOf | None = None
    later: Callable[[float, Callable[[], None]], object] | None = None
    may_serve: Callable[[], bool] = lambda: True
