"""A request's life as a table: which event may follow which. What is not in the table is a fault of the shell."""

from __future__ import annotations

from enum import Enum

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken, Preempted, Refused


class Stage(Enum):
    """Where a request stands between two events."""

    OUTSIDE = "outside"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    EVICTED = "evicted"  # preempted before its first token came out
    PAUSED = "paused"  # preempted after it: the client has part of the answer
    ENDED = "ended"


LIFE: dict[tuple[Stage, type[Event]], Stage] = {
    (Stage.OUTSIDE, Refused): Stage.ENDED,
    (Stage.OUTSIDE, Arrived): Stage.WAITING,
    (Stage.WAITING, Admitted): Stage.PREFILLING,
    (Stage.WAITING, Cancelled): Stage.ENDED,
    (Stage.PREFILLING, FirstToken): Stage.DECODING,
    (Stage.PREFILLING, Preempted): Stage.EVICTED,
    (Stage.PREFILLING, Cancelled): Stage.ENDED,
    (Stage.DECODING, Completed): Stage.ENDED,
    (Stage.DECODING, Preempted): Stage.PAUSED,
    (Stage.DECODING, Cancelled): Stage.ENDED,
    (Stage.EVICTED, Admitted): Stage.PREFILLING,
    (Stage.EVICTED, FirstToken): Stage.PAUSED,
    (Stage.EVICTED, Cancelled): Stage.ENDED,
    (Stage.PAUSED, Admitted): Stage.DECODING,  # what it had is computed again; its first token came out long ago
    (Stage.PAUSED, Completed): Stage.ENDED,
    (Stage.PAUSED, Cancelled): Stage.ENDED,
}
"""(stage, event) -> stage. A request of one token gets `FirstToken` and `Completed` at the same time.

A token that was on its way when its request was preempted still comes out (asynchronous scheduling composes a step
before it knows what the last one brought): so who waits may get a first token, or the last and be done.
"""


def after(stage: Stage, event: Event) -> Stage:
    """The stage that `event` leads to. Raises ValueError if it may not happen now."""
    following = LIFE.get((stage, type(event)))
    if following is None:
        allowed = [kind.__name__ for at, kind in LIFE if at is stage]
        raise ValueError(
            f"request {event.request.id!r} is {stage.value} and cannot be {type(event).__name__} "
            f"({' or '.join(allowed) or 'nothing'} may follow)"
        )
    return following
