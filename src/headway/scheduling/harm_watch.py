"""Harm watch: suspends a scheduler's policies while they do harm, as the plug-in's do-no-harm guard does.

It hears the scheduler's events. The plug-in counts the same waits itself, since its requests can also be parked.
"""

from __future__ import annotations

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event
from headway.domain.request import RequestId, uncached_prefill_tokens
from headway.scheduling.harm_judge import HarmJudge, HarmLimits, WaitComparison
from headway.scheduling.scheduler import Scheduler

SECONDS_BETWEEN_CHECKS = 1


class HarmWatch:
    """A listener of the scheduler that it is given at each check."""

    def __init__(self, limits: HarmLimits) -> None:
        self._comparison = WaitComparison()
        self._judge = HarmJudge(limits)
        self._work: dict[RequestId, int] = {}  # of requests never admitted: prefill tokens at arrival

    def observe(self, event: Event) -> None:
        """Count the wait that begins or ends with this event."""
        if event.request.is_offline:  # it waits by intent
            return
        match event:
            case Arrived(request=request):
                work = self._work[request.id] = uncached_prefill_tokens(request)
                self._comparison.arrive(request.id, request.arrived_at, work)
            case Admitted(request=request, at=at) if request.id in self._work:
                self._comparison.admit(request.id, request.arrived_at, at, self._work.pop(request.id))
            case Cancelled(request=request, at=at) | Completed(request=request, at=at) if request.id in self._work:
                del self._work[request.id]
                self._comparison.leave(request.id, at)
            case _:
                pass

    def check(self, scheduler: Scheduler, now: float) -> None:
        """Once a second, before a step: suspend the scheduler's policies, or reinstate them, if it is time to."""
        if not self._judge.check(self._comparison.waits(now), now):
            return
        if self._judge.suspends:
            scheduler.suspend()
        else:
            scheduler.reinstate()
            self._comparison.forget()
