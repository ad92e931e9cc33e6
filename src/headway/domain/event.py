"""Lifecycle events: what happened to a request, for policies that listen.

Each request arrives once and ends once (`Completed`, `Refused` or `Cancelled`); in between it may be admitted and
preempted any number of times, in turn. Where each replica has a queue of its own, a request that goes from one to
another is cancelled here and arrives there. Times are seconds on the shell's clock.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeAlias, get_args, runtime_checkable

from headway.domain.request import RequestView


class Arrived(NamedTuple):
    """The request was put into the waiting queue."""

    request: RequestView
    at: float


class Refused(NamedTuple):
    """The request never entered the queue; `reason` is one sentence."""

    request: RequestView
    at: float
    reason: str


class Admitted(NamedTuple):
    """The request left the queue and joined a running batch."""

    request: RequestView
    at: float


class Preempted(NamedTuple):
    """The request lost its KV blocks and went back to the queue.

    `for_memory` is False where memory was not short: its replica failed, and another one is to serve it; or it made
    room for a request of higher priority.
    """

    request: RequestView
    at: float
    for_memory: bool = True


class FirstToken(NamedTuple):
    """The request's first output token came out."""

    request: RequestView
    at: float


class Completed(NamedTuple):
    """The request's last output token came out; `output_tokens` is how many there were."""

    request: RequestView
    at: float
    output_tokens: int


class Cancelled(NamedTuple):
    """The client left before the end, or the request goes on in another queue."""

    request: RequestView
    at: float


Event: TypeAlias = Arrived | Refused | Admitted | Preempted | FirstToken | Completed | Cancelled
EVENTS: frozenset[type[Event]] = frozenset(get_args(Event))


@runtime_checkable
class Listener(Protocol):
    """Receives lifecycle events: predictors, adaptive policies, recorders.

    It may name the classes of events that it needs in an attribute `hears`. Then others may be kept from it, which
    saves them a call and, where no listener needs them, being made.
    """

    def observe(self, event: Event) -> None:
        """Take note of one event. Must not raise, and must not keep the request beyond its end."""


def heard_by(*listeners: Listener) -> frozenset[type[Event]]:
    """The classes of events that at least one of the listeners needs."""
    return frozenset().union(*[getattr(listener, "hears", EVENTS) for listener in listeners])
