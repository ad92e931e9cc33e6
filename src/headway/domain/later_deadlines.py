"""Deadlines beyond the first token: time per output token, the last token, and the program of a request."""

from __future__ import annotations

from typing import NamedTuple


class ProgramStage(NamedTuple):
    """Where a request stands in its program: an agent's task of several requests, one stage after another.

    Attributes:
        program: its name.
        stage: which stage this request is of, from 1. Requests of one stage may run side by side.
        stages: how many the program has; None where its client does not know.
        deadline: time by which its last stage is to end, seconds on the clock of `arrived_at`; None without one.
    """

    program: str
    stage: int = 1
    stages: int | None = None
    deadline: float | None = None


class LaterDeadlines(NamedTuple):
    """What a client wants of a request after its first token; None where it names nothing.

    Attributes:
        tpot_seconds: bound on the time per output token after the first, seconds.
        end: time by which the last token is wanted, seconds on the clock of `arrived_at`.
        program: the program that it is a part of.
    """

    tpot_seconds: float | None = None
    end: float | None = None
    program: ProgramStage | None = None

    def moved(self, seconds: float) -> LaterDeadlines:
        """The same on a clock that is ahead by so many seconds."""
        program = self.program
        if program is not None and program.deadline is not None:
            program = program._replace(deadline=program.deadline + seconds)
        return self._replace(end=None if self.end is None else self.end + seconds, program=program)


def later_deadlines(
    tpot_seconds: float | None, end: float | None, program: ProgramStage | None
) -> LaterDeadlines | None:
    """They, or None where there are none at all, as of most requests."""
    if tpot_seconds is None and end is None and program is None:
        return None
    return LaterDeadlines(tpot_seconds, end, program)
