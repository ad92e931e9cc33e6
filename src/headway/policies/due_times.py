"""Due times: by when the first and the last token of a request are due, of all deadlines that its client gave."""

from __future__ import annotations

import math

from headway.domain.costs import ServiceCosts
from headway.domain.later_deadlines import ProgramStage
from headway.domain.request import RequestView

_STAGES_MAX = 50_000  # remembered of programs; then the oldest is forgotten
_COUNTED_MAX = 256  # stages that are counted apart; later ones count as this one


class DueTimes:
    """Turns the deadlines of a request into two times; both are the same whenever asked for one request.

    The deadline of a program is split evenly: a stage is due after what is left of the program's time when the request
    arrives, over the stages left, its own included. Pauses between stages, for tools, come out of that too. Where the
    client does not say how many stages there are, those to come are as many as programs that reached this stage have
    had since, on average; programs under way count with the stages that they had so far, so this is rather too few.
    JITServe matches a program's graph of calls with those of finished ones for this, and splits by their times.
    """

    def __init__(self, costs: ServiceCosts | None = None) -> None:
        """Without costs the last token is taken to be due when the first one is."""
        self._costs = costs
        self._left: dict[tuple[str, str, int], float] = {}  # stages left, by tenant, program and stage
        self._reached = [0] * (_COUNTED_MAX + 1)  # programs that reached each stage

    def ends_by(self, request: RequestView) -> float:
        """When its last token is due, seconds; infinite where nothing says so."""
        later = request.later_deadlines
        if later is None:
            return math.inf
        end = math.inf if later.end is None else later.end
        program = later.program
        if program is None:
            return end
        left = self._stages_left(request, program)
        if program.deadline is None:
            return end
        spare = program.deadline - request.arrived_at
        return min(end, request.arrived_at + spare / left if spare > 0 else program.deadline)

    def first_token_by(self, request: RequestView) -> float:
        """When its next token is due, seconds: the first one, or after a preemption the one that it waits for.

        The decode that the estimate's mean expects has to fit before the last one is due; without an estimate none is
        expected. Infinite without deadlines.
        """
        due = math.inf if request.deadline is None else request.deadline
        later = request.later_deadlines
        if later is None:
            return due
        if request.produced_tokens and later.tpot_seconds is not None:
            due += request.produced_tokens * later.tpot_seconds
        end = self.ends_by(request)
        if end < math.inf and self._costs is not None and request.estimate is not None:
            tokens = request.estimate.remaining_mean(request.produced_tokens)
            end -= self._costs.decode_seconds_per_token * max(0.0, tokens - 1)
        return min(due, end)

    def _stages_left(self, request: RequestView, program: ProgramStage) -> float:
        """Its own stage, and those expected after it; counts the stage when it is first asked about."""
        key = request.tenant, program.program, program.stage
        left = self._left.get(key)
        if left is None:
            reached, stage = self._reached, min(program.stage, _COUNTED_MAX)
            reached[stage] += 1
            if program.stages is not None:
                left = float(max(1, program.stages - program.stage + 1))
            else:
                left = 1 + sum(reached[stage + 1 :]) / reached[stage]
            self._left[key] = left
            if len(self._left) > _STAGES_MAX:
                del self._left[next(iter(self._left))]
        return left
