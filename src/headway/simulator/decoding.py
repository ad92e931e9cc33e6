"""Decoding requests as one set, in which a step costs the same for 1 and for 1,000 requests.

Steps are numbered. A request that joined at step j with target t has, before step s > j, computed t + (s - j - 1) KV
tokens, needs a new block at step s iff that is a multiple of the block size, and has produced
`base_produced + (d - j)` tokens once step d is done. So nothing has to be written per request and step: the sum of
contexts is affine in s, blocks are counted by residue, ends wait in a heap.
"""

from __future__ import annotations

import heapq
import math

from headway.simulator.tracked import TrackedRequest


class DecodeSet:
    """Decoding requests of one replica."""

    __slots__ = ("_block_tokens", "_context_base", "_due", "_ends", "size")

    def __init__(self, block_tokens: int) -> None:
        self.size = 0
        self._block_tokens = block_tokens
        self._context_base = 0  # sum over requests of (target - joined_step - 1)
        self._due = [0] * block_tokens  # requests by the residue of the steps at which they need a block
        self._ends: list[tuple[int, int, int, TrackedRequest]] = []  # finish_step, row, generation, request

    def join(self, request: TrackedRequest, step: int, remaining_tokens: int) -> None:
        """Add a request: the token of `step` is the first of its `remaining_tokens` (≥ 1), then it decodes."""
        request.joined_step = step
        request.generation += 1
        request.finish_step = step + remaining_tokens - 1
        offset = request.target_tokens - step - 1
        self._context_base += offset
        self._due[-offset % self._block_tokens] += 1
        self.size += 1
        heapq.heappush(self._ends, (request.finish_step, request.row, request.generation, request))

    def leave(self, request: TrackedRequest) -> None:
        """Remove a request that ended or lost its place."""
        offset = request.target_tokens - request.joined_step - 1
        self._context_base -= offset
        self._due[-offset % self._block_tokens] -= 1
        self.size -= 1
        request.generation += 1  # what the heap still holds of it is stale

    def context_tokens(self, step: int) -> int:
        """KV tokens computed before `step`, summed over the requests."""
        return self._context_base + self.size * step

    def blocks_due(self, step: int) -> int:
        """Blocks that `step` needs."""
        return self._due[step % self._block_tokens]

    def blocks_of_run(self, first_step: int, steps: int) -> int:
        """Blocks that a run of `steps` from `first_step` needs."""
        cycles, rest = divmod(steps, self._block_tokens)
        start = first_step % self._block_tokens
        past_the_end = max(0, start + rest - self._block_tokens)  # residues that wrap around
        return cycles * self.size + sum(self._due[start : start + rest]) + sum(self._due[:past_the_end])

    def steps_that_fit(self, first_step: int, blocks_free: int, most: int) -> int:
        """How many steps from `first_step`, at most `most`, can be given their blocks."""
        size = self._block_tokens
        if blocks_free >= (most // size + 1) * self.size:
            return most
        cycles = blocks_free // self.size
        steps, left = cycles * size, blocks_free - cycles * self.size
        while steps < most:
            left -= self._due[(first_step + steps) % size]
            if left < 0:
                return steps
            steps += 1
        return most

    def next_end(self) -> int | None:
        """Step of the earliest end; None when no request decodes."""
        ends = self._ends
        while ends:
            finish_step, _, generation, request = ends[0]
            if generation == request.generation:
                return finish_step
            heapq.heappop(ends)
        return None

    def pop_ends(self, step: int) -> list[TrackedRequest]:
        """Requests whose last token comes at `step`, by row; they stay in the set until they `leave`."""
        ending: list[TrackedRequest] = []
        if not self._ends or self._ends[0][0] > step:
            return ending  # as in most steps; a stale entry only comes earlier
        while self.next_end() == step:
            ending.append(heapq.heappop(self._ends)[3])
        return ending


def computed_before(request: TrackedRequest, step: int) -> int:
    """KV tokens of a decoding request before `step`."""
    return request.target_tokens + step - request.joined_step - 1


def least_steps(first_ps: int, growth_ps: int, span_ps: int) -> int:
    """Least k ≥ 1 such that k steps, the first of `first_ps` and each `growth_ps` longer, take `span_ps` or more."""
    if span_ps <= first_ps:
        return 1
    if growth_ps == 0:
        return -(-span_ps // first_ps)
    # The root of growth/2 · k² + (first - growth/2) · k = span, rounded down.
    linear = 2 * first_ps - growth_ps
    k = (math.isqrt(linear * linear + 8 * growth_ps * span_ps) - linear) // (2 * growth_ps)
    return k if run_duration(first_ps, growth_ps, k) >= span_ps else k + 1


def run_duration(first_ps: int, growth_ps: int, steps: int) -> int:
    """Picoseconds of `steps` steps, the first of `first_ps` and each `growth_ps` longer."""
    return steps * first_ps + growth_ps * (steps * (steps - 1) // 2)
