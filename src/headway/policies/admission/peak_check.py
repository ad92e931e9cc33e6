"""Peak check: nobody comes in who would overfill memory later, as far as lengths are known."""

from __future__ import annotations

import math

from headway.domain.replica import BatchView, MemoryView
from headway.domain.request import RequestView


class PeakCheck:
    """Admit the head only if memory will suffice at every instant until all who run, and it, have ended."""

    def __init__(self, *, reserve: float = 0.0, quantile: float | None = None) -> None:
        if not 0 <= reserve < 1:
            raise ValueError(f"reserve must be in [0, 1), got {reserve}")
        if quantile is not None and not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
        self._reserve = reserve
        self._quantile = quantile

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if the peak fits, else 1."""
        if batch.size == 0:
            return 0
        everyone = [(r.prompt_tokens + r.produced_tokens, self._remaining(r)) for r in (*batch.running(), request)]
        block = memory.block_tokens
        peak = max(sum(-(-(c + t) // block) for c, r in everyone if r >= t) for _, t in everyone)
        return 0 if peak <= math.floor(memory.blocks_total * (1 - self._reserve)) else 1

    def _remaining(self, request: RequestView) -> int:
        estimate = request.estimate
        if estimate is None:
            raise ValueError(f"request {request.id!r} has no length estimate: name a predictor with --prediction")
        if self._quantile is None:
            return math.ceil(estimate.remaining_mean(request.produced_tokens))
        return estimate.remaining_quantile(self._quantile, request.produced_tokens)
