"""A request's life as a table: which event may follow which. An event that is not in it is a bug in the shell.

`LIFE` is the life that policies hear of. A shell with finer stages writes a `StageTable` of its own and moves its
requests through `StageTable.after`, so that an illegal move fails where it happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Generic, TypeVar

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken, Preempted, Refused
from headway.domain.request import RequestId

S = TypeVar("S", bound=StrEnum)
M = TypeVar("M")


class StageTable(Generic[S, M]):
    """(stage, move) -> the next stage.

    Stages are of a `StrEnum`, whose members hash as fast as strings. Moves are event classes, or of a `StrEnum` of past
    participles: "request 7 is ended and cannot be queued".
    """

    __slots__ = ("moves",)

    def __init__(self, moves: Mapping[tuple[S, M], S]) -> None:
        self.moves: Mapping[tuple[S, M], S] = dict(moves)

    def after(self, stage: S, move: M, request_id: RequestId) -> S:
        """The stage that `move` leads to; one dictionary look-up. Raises ValueError if it is not in the table."""
        following = self.moves.get((stage, move))
        if following is None:
            allowed = [_name(known) for at, known in self.moves if at == stage]
            raise ValueError(
                f"request {request_id!r} is {stage} and cannot be {_name(move)} "
                f"({' or '.join(allowed) or 'nothing'} may follow)"
            )
        return following


class Stage(StrEnum):
    """Where a request stands between two events."""

    OUTSIDE = "outside"
    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    EVICTED = "evicted"  # preempted before its first token came out
    PAUSED = "paused"  # preempted after it: the client has part of the answer
    ENDED = "ended"


LIFE: StageTable[Stage, type[Event]] = StageTable(
    {
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
)
"""A request of one token gets `FirstToken` and `Completed` at the same time.

An engine with asynchronous scheduling plans a step before it knows what the last step produced. A token that was on its
way when its request was preempted still comes out: a waiting request may get its first token, or its last.
"""


def after(stage: Stage, event: Event) -> Stage:
    """The stage of `LIFE` that `event` leads to. Raises ValueError if it may not happen now."""
    return LIFE.after(stage, type(event), event.request.id)


def _name(move: object) -> str:
    return move.__name__ if isinstance(move, type) else str(move)
