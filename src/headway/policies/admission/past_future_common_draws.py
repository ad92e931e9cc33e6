"""Past-Future admission with common random numbers: a refused head keeps its draws."""

from __future__ import annotations

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.admission.past_future_admission import Attempts
from headway.policies.contracts import Need


class PastFutureCommonDraws:
    """Admit the head while the peak of a few futures, drawn once for each request, stays within memory.

    Idea: as past-future, but each request keeps its draws for life, so asking again is the same question. A head that
        does not fit waits until the batch has room for it, not until it is lucky.
    Source: ours, after Past-Future (arXiv 2507.10150): formula, `reserve` and `steps_between` are past-future's. The
        draws depend on seed, request and number alone (common random numbers). There are `draws` of them (5) whatever
        the batch, where the published form makes do with fewer for large batches.
    Reads: the length estimates, prompt and produced tokens, total memory, the seed.
    Wins when: a head is refused for many steps in a row, where drawing again admits it too early in the end.
    Loses when: as past-future; and one unlucky lot keeps a request out for as long as the batch stays full.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY])

    def __init__(self, *, seed: int, reserve: float = 0.05, steps_between: int = 2, draws: int = 5) -> None:
        if draws < 1:
            raise ValueError(f"draws must be at least 1, got {draws}")
        self._attempts = Attempts(reserve, steps_between)
        self._streams = [f"{seed}/{number}" for number in range(draws)]

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if no draw overfills memory; else the steps to the next attempt."""
        return self._attempts.hold_steps(request, batch, memory, lambda _: self._streams)
