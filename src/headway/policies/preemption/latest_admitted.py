"""Latest admitted: the request admitted last is preempted first."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.request import RequestView


class LatestAdmitted:
    """Preempt the request that was admitted last.

    Idea: the last in has usually done the least, and first come stays first served.
    Source: vLLM V1 `Scheduler.schedule` under `policy=fcfs`, which pops the end of its running list.
    Reads: the order of admission.
    Wins when: admission follows arrival, so that age, sunk work and the queue's order agree.
    Loses when: the latest brought a long prompt that is computed and must be computed again, while an older, shorter
        one could have given way for less.
    """

    def victim(self, running: Sequence[RequestView], now: float) -> RequestView:
        """The last of `running`."""
        return running[-1]
