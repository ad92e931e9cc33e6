"""Peak check: the head waits while it would overfill memory at a later instant, as far as lengths are known."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from functools import lru_cache
from itertools import accumulate

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.contracts import Need

_OFTEN = 64  # a request that outlives its estimate again and again is extended by at least 1/64
_LANE_BITS = 24  # a forecast counts up to 16 million requests
_LANE_MASK = (1 << _LANE_BITS) - 1


class PeakCheck:
    """Admit the head only if memory will suffice at every later instant for it and all running requests.

    Idea: a request grows by one token a step and then frees everything, so the batch's use of memory peaks only when a
        request ends. Predict it at those instants, and refuse a head that would push one of them over the limit.
    Source: the forward-looking check of arXiv 2606.22327, Theorem 3.2 (SVF), and the same formula in Past-Future, arXiv
        2507.10150: max over m of (r_m·m + Σ_{j≤m} c_j), r remaining tokens descending, c tokens held. Ours counts whole
        blocks, exactly, and makes a new estimate for a request that outlived the one made at entry (the papers leave it
        open). As published, prefill takes no time in the forecast.
    Reads: the length estimates of the head and of everyone running (mean, or the quantile asked for), prompt and
        produced tokens, the client's bound, total memory.
    Wins when: memory is the bottleneck and estimates are good: no preemption, nothing recomputed, a full batch.
    Loses when: estimates are poor. Too long leaves memory idle, too short preempts all the same (hold back a
        `reserve` of 0.1 with predicted lengths). Blocks shared through a prefix cache are counted for each sharer.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY])

    def __init__(self, *, reserve: float = 0.0, quantile: float | None = None) -> None:
        """`reserve`: fraction of memory held back. `quantile`: of the estimate, instead of its mean (0 to 1)."""
        if not 0 <= reserve < 1:
            raise ValueError(f"reserve must be at least 0 and below 1, got {reserve}")
        if quantile is not None and not 0 < quantile < 1:
            raise ValueError(f"quantile must be between 0 and 1, got {quantile}")
        self._reserve = reserve
        self._quantile = quantile
        self._forecasts: dict[int, _PeakForecast] = {}  # by id() of the batch, one batch a replica

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if the peak fits; else the steps until it would, or until a running request is expected to end."""
        if batch.size == 0:
            return 0
        block_tokens = memory.block_tokens
        forecast = self._forecasts.get(id(batch))
        if forecast is None or not forecast.stands(batch, block_tokens):
            running = batch.running()
            lives = [(self._remaining(r), r.prompt_tokens + r.produced_tokens) for r in running]
            forecast = self._forecasts[id(batch)] = _PeakForecast(batch, lives, block_tokens)
        remaining = self._remaining(request)
        held = request.prompt_tokens + request.produced_tokens
        # The small addend undoes the rounding of 1 - reserve: a tenth of 10 blocks held back leaves 9.
        limit = math.floor(memory.blocks_total * (1 - self._reserve) + 1e-9)
        peak = -(-(held + remaining) // block_tokens)
        if forecast.sum_of_peaks + peak <= limit:
            return 0
        return forecast.hold_steps(held, remaining, peak, limit, batch.decode_steps)

    def _remaining(self, request: RequestView) -> int:
        """Output tokens believed to come, ≥ 1: the belief held at entry, until outlived; then the next, from there.

        A function of the request alone, so it does not matter how often and when the policy is asked.
        """
        estimate, produced = request.estimate, request.produced_tokens
        if estimate is None:
            raise ValueError(
                f"request {request.id!r} has no length estimate, which peak-check needs: name a predictor with "
                "--prediction (for example running-mean)"
            )
        believed = 0
        while believed <= produced:
            if self._quantile is None:
                more = math.ceil(estimate.remaining_mean(believed))
            else:
                more = estimate.remaining_quantile(self._quantile, believed)
            believed += max(more, believed // _OFTEN)
        bound = request.max_output_tokens
        return believed - produced if bound is None else max(1, min(believed, bound) - produced)


class _PeakForecast:
    """Memory in blocks over the steps to come, if no request joins; valid until one joins, leaves or outlives.

    `lives` has (tokens to come, tokens held) per running request. Time t counts steps from the making; a request that
    holds h tokens and ends at e holds ceil((h + t) / block) blocks at every t ≤ e.
    """

    __slots__ = (
        "_batch",
        "_block_tokens",
        "_ends",
        "_lanes",
        "_lives",
        "_made_at_step",
        "_needs",
        "_version",
        "_whole_blocks",
        "_worst",
        "first_end",
        "sum_of_peaks",
    )

    def __init__(self, batch: BatchView, lives: list[tuple[int, int]], block_tokens: int) -> None:
        self._batch = batch  # kept, so that its id() stays its own
        self._version = batch.version
        self._made_at_step = batch.decode_steps
        self._block_tokens = block_tokens
        self._lives = lives
        self._ends: list[int] = []  # ascending; empty until the sum of peaks does not suffice for an answer
        self.first_end = min(lives)[0]
        self.sum_of_peaks = sum([-(-(end + held) // block_tokens) for end, held in lives])

    def stands(self, batch: BatchView, block_tokens: int) -> bool:
        """Whether it may still be asked: same requests, and each where it was believed to be."""
        return (
            self._version == batch.version
            and batch.decode_steps - self._made_at_step < self.first_end
            and self._batch is batch
            and self._block_tokens == block_tokens
        )

    def hold_steps(self, held: int, remaining: int, peak: int, limit: int, decode_steps: int) -> int:
        """Least k ≥ 0 such that a request joining k steps from now fits, at most the steps to the first end.

        It fits if at every later end of a request the use stays within `limit`: those before its own end, with its
        blocks added (`_needs`); its own end; those after, without it (`_worst`).
        """
        if not self._ends:
            self._look_ahead()
        ends, elapsed = self._ends, decode_steps - self._made_at_step
        to_first_end = ends[0] - elapsed
        if self._worst > limit:
            return to_first_end
        room_tokens = limit * self._block_tokens
        steps = 0
        while steps < to_first_end:
            own_end = elapsed + steps + remaining
            before = bisect_right(ends, own_end)
            short = self._needs[before - 1] + held - elapsed - steps - room_tokens if before else 0
            if short > 0:
                steps += short  # each step later, it will have grown one token less by the instant that binds
            elif self._used(own_end) + peak > limit:
                after = bisect_left(ends, own_end)
                if after == len(ends):
                    return to_first_end  # too large even alone
                steps += ends[after] + 1 - own_end  # use only grows until the next end
            else:
                return steps
        return to_first_end

    def _used(self, t: int) -> int:
        """Blocks in use at time t ≥ 1."""
        first = bisect_left(self._ends, t)
        alive = len(self._ends) - first
        if not alive:
            return 0
        whole, offset = divmod(t - 1, self._block_tokens)
        crossed = (self._lanes[first] >> (offset * _LANE_BITS)) & _LANE_MASK
        return self._whole_blocks[first] + alive * (whole + 1) + crossed

    def _look_ahead(self) -> None:
        """Derive the curves, one entry per end, ascending; at equal ends the first entry is the one that counts.

        At time t = whole·block + offset + 1 a holder of h = q·block + r tokens has q + whole + 1 blocks, and one more
        if r + offset ≥ block. How many of those still alive have that is counted for all offsets at once, in the
        lanes of one long integer.
        """
        block_tokens = self._block_tokens
        lives = sorted(self._lives, reverse=True)
        crossings = _crossings(block_tokens)
        lanes = list(accumulate([crossings[held % block_tokens] for _, held in lives]))
        whole_blocks = list(accumulate([held // block_tokens for _, held in lives]))
        used = []
        for alive, (end, _) in enumerate(lives):
            whole, offset = divmod(end - 1, block_tokens)
            crossed = (lanes[alive] >> (offset * _LANE_BITS)) & _LANE_MASK
            used.append(whole_blocks[alive] + (alive + 1) * (whole + 1) + crossed)
        self._worst = max(used)
        used.reverse()
        self._ends = [end for end, _ in reversed(lives)]
        # ceil(x / block) ≤ free blocks  ⇔  x ≤ free blocks · block: so tokens and blocks can be added up.
        needs = [end + blocks * block_tokens for end, blocks in zip(self._ends, used, strict=True)]
        self._needs = list(accumulate(needs, max))
        self._lanes = lanes[::-1]
        self._whole_blocks = whole_blocks[::-1]


@lru_cache(maxsize=8)
def _crossings(block_tokens: int) -> tuple[int, ...]:
    """By remainder r: a one in the lane of each offset in 0 … block - 1 with r + offset ≥ block."""
    by_remainder = [0]
    for remainder in range(1, block_tokens):
        by_remainder.append(by_remainder[-1] + (1 << ((block_tokens - remainder) * _LANE_BITS)))
    return tuple(by_remainder)
