"""Token goodput: output tokens of the requests, and of the programs, that kept their clients' deadlines."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Seconds, Trace

Mask = npt.NDArray[np.bool_]


class TokenGoodput(NamedTuple):
    """Output tokens of the requests that met their deadlines.

    Attributes:
        tokens: of those that met all of theirs.
        share: they, of the output tokens of all requests with a deadline.
    """

    tokens: int
    share: float


def token_goodput(trace: Trace, outcome: DayOutcome, ttft: Seconds, tpot: Seconds, e2e: Seconds) -> TokenGoodput | None:
    """The token goodput of one day; None where no client gave a deadline.

    A request of a program with a deadline counts if all requests of the program completed in time, and it kept its own
    deadlines. Requests without a deadline, and offline ones, do not count.

    Args:
        trace: what was offered.
        outcome: what became of each row.
        ttft: seconds per row, NaN where there is none; likewise `tpot` and `e2e`.
    """
    has_deadline, met = np.zeros(len(trace), bool), np.ones(len(trace), bool)
    for bounds, values in (
        (None if trace.deadline_is_slo else trace.deadline_seconds, ttft),
        (trace.tpot_deadline_seconds, np.where(trace.output_tokens > 1, tpot, 0.0)),
        (trace.end_deadline_seconds, e2e),
    ):
        if bounds is not None:
            has_deadline |= ~np.isnan(bounds)
            met &= np.isnan(bounds) | (values <= bounds)
    if trace.program is not None and trace.program_deadline_seconds is not None:
        in_program, kept = _programs_kept(trace.program, trace.program_deadline_seconds, outcome)
        has_deadline |= in_program
        met &= ~in_program | kept
    if trace.offline is not None:
        has_deadline &= ~trace.offline
    if not has_deadline.any():
        return None
    met &= has_deadline & ~np.isnan(e2e)
    met[[*outcome.refused, *outcome.failed]] = False
    tokens = int(trace.output_tokens[met].sum())
    return TokenGoodput(tokens, tokens / int(trace.output_tokens[has_deadline].sum()))


def _programs_kept(program: npt.NDArray[np.int64], deadline: Seconds, outcome: DayOutcome) -> tuple[Mask, Mask]:
    """(rows of programs with a deadline, rows of programs that ended in time)."""
    numbers, first, place = np.unique(program, return_index=True, return_inverse=True)
    ended = outcome.ended_ps.copy()
    ended[[*outcome.refused, *outcome.failed]] = NEVER
    last = np.zeros(len(numbers), np.int64)
    np.maximum.at(last, place, np.where(ended == NEVER, np.iinfo(np.int64).max, ended))
    began, allowed = outcome.arrived_ps[first], deadline[first]
    has_deadline = (numbers >= 0) & ~np.isnan(allowed)
    in_time = (last < np.iinfo(np.int64).max) & (last - began <= np.nan_to_num(allowed) * PS_PER_SECOND)
    return has_deadline[place], (has_deadline & in_time)[place]
