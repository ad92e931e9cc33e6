"""Overflow probability: the head waits while it would make running out of memory too likely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from headway.domain.estimate import LengthEstimate, law_moves, remaining_survivals
from headway.domain.event import Completed, Event, Preempted
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestId, RequestView
from headway.policies.contracts import Need

_LOWEST_Z, _HIGHEST_Z = -4.0, 8.0
_MEMORY = 500  # completions that the mean size of a request goes back over
_CAUTIOUS = 0.99  # quantile of the lengths of requests that come in without being weighed
_INSTANTS = (1, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096, 8192, 16384)
"""Steps from now at which memory is forecast."""
_BEFORE = tuple(instant - 1 for instant in _INSTANTS)  # it is there at t if more than t - 1 are still to come
_UNITS = 256  # of a token: sums are kept in whole numbers, so that they come out the same in any order
_FAR = 1 << 62  # tokens left to the bound of a request without one
_LEAST_WIDTH_BITS = 4  # ages are told apart by 16 tokens, and above 128 by a quarter to an eighth


class OverflowProbability:
    """Admit the head while the memory that will be needed stays within capacity with the probability asked for.

    Idea: a running request will hold prompt and output so far and t more tokens in t steps, if it is still there. Its
        estimate says how likely that is. Over many requests the sum is nearly normal: admit while mean + z·deviation
        fits at every instant to come. How large z must be is not assumed but learnt: tokens lost to a preemption raise
        it, tokens completed lower it, so that in the long run the share lost is `overflow_target`.
    Source: ours; it answers the question that Past-Future (arXiv 2507.10150) answers with a few samples. Instants: 20,
        from 1 to 2^14 steps ahead, log-spaced. Per request and instant mean and variance of (held + t)·[still there],
        half a block added for rounding up. Ages are counted in buckets (of 16 tokens, above 128 of a quarter of an
        octave), so that a step costs only the few requests that enter another. Update of z as in adaptive conformal
        inference (Gibbs and Candès, arXiv 2106.00170), in units of the mean size of a request: up by `learning_rate` ·
        tokens lost, down by `learning_rate` · `overflow_target` · tokens completed, from `z_start`, within -4 and 8. A
        head that fits by the sum of 99 % quantiles comes in at once; others are weighed every `steps_between` engine
        steps. Blocks that running requests share through a prefix cache, as far as memory in use is less than what they
        hold one by one, are credited in proportion to those still there.
    Reads: the length estimates of the head and of everyone running (their survival), prompt, cached and produced
        tokens, the client's bound, total and free memory, preemptions and completions.
    Wins when: memory is the bottleneck, lengths are known as a distribution and preemption is dear.
    Loses when: the estimates' errors go together (all of a burst longer than foretold), which a sum of independent
        lengths does not foresee; z rises then, but late. With few running requests and heavy tails the sum is not
        normal either. Beside latest-admitted, where a few requests hold much of the memory: one of them lost keeps z up
        for hundreds of completions. Choose the victim by smallest-remaining-benefit. Where the engine's prefix cache
        keeps what a victim had computed, as vLLM's does by default: preemption is cheap, and greedy admission as good.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY, Need.MEMORY_IN_USE, Need.PREEMPTIONS, Need.CACHED_TOKENS])

    def __init__(
        self,
        *,
        overflow_target: float = 0.007,
        learning_rate: float = 0.5,
        z_start: float = 1.0,
        steps_between: int = 1,
    ) -> None:
        if not 0 < overflow_target < 1:
            raise ValueError(f"overflow_target must be between 0 and 1, got {overflow_target:g}")
        if not 0 <= learning_rate < math.inf:
            raise ValueError(f"learning_rate must be at least 0 (0 keeps z where it is), got {learning_rate:g}")
        if not _LOWEST_Z <= z_start <= _HIGHEST_Z:
            raise ValueError(f"z_start must be from {_LOWEST_Z:g} to {_HIGHEST_Z:g}, got {z_start:g}")
        if steps_between < 1:
            raise ValueError(f"steps_between must be at least 1, got {steps_between}")
        self._target = overflow_target
        self._rate = learning_rate
        self._z = z_start
        self._steps_between = steps_between
        self._mean_tokens = 1.0  # of a completed request, prompt and output
        self._forecasts: dict[int, _OverflowForecast] = {}  # by id() of the batch, one batch a replica
        self._completions = 0
        self._candidate: _Candidate | None = None

    @property
    def z(self) -> float:
        """Deviations kept free at present."""
        return self._z

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if overflow stays unlikely enough; else the steps to the next weighing."""
        if batch.size == 0:
            return 0
        forecast = self._forecasts.get(id(batch))
        if forecast is None or forecast.batch is not batch or forecast.block_tokens != memory.block_tokens:
            forecast = self._forecasts[id(batch)] = _OverflowForecast(batch, memory.block_tokens)
        forecast.follow(self._completions)
        share = self._share_of(request, memory.block_tokens)
        if forecast.cautious_blocks + share.cautious_blocks <= memory.blocks_total:
            return 0
        late = batch.decode_steps % self._steps_between
        if late or not forecast.fits(share, memory, self._z):
            return self._steps_between - late
        return 0

    def observe(self, event: Event) -> None:
        """Learn from what was lost and what was not."""
        if isinstance(event, Preempted):
            if event.for_memory:
                request = event.request
                held = max(1, request.prompt_tokens + request.produced_tokens)
                self._lost(max(0, held - request.cached_prompt_tokens), held)
        elif isinstance(event, Completed):
            self._completions += 1
            tokens = event.request.prompt_tokens + event.output_tokens
            self._mean_tokens += (tokens - self._mean_tokens) / min(self._completions, _MEMORY)
            self._z = max(_LOWEST_Z, self._z - self._rate * self._target * tokens / self._mean_tokens)

    def memory_lost(self, tokens: int) -> None:
        """Learn from preemptions that an engine counts without naming the requests."""
        self._lost(tokens, max(1, tokens))

    def _lost(self, tokens: int, size: int) -> None:
        """Tokens were lost; `size` stands for that of a request before any has completed."""
        mean = self._mean_tokens if self._completions else size
        self._z = min(_HIGHEST_Z, self._z + self._rate * tokens / mean)

    def _share_of(self, request: RequestView, block_tokens: int) -> _MemoryShare:
        """What the head would add; kept, since it is asked for again and again."""
        kept = self._candidate
        produced, estimate = request.produced_tokens, request.estimate
        if (
            kept is not None
            and kept.share.request is request
            and kept.produced_tokens == produced
            and kept.block_tokens == block_tokens
            and kept.estimate is estimate
            and kept.completions == self._completions
        ):
            return kept.share
        share = _share(request, block_tokens)
        self._candidate = _Candidate(produced, block_tokens, estimate, self._completions, share)
        return share


class _MemoryShare(NamedTuple):
    """What one request adds to the forecast while its age is in one bucket."""

    before_tokens: int  # produced tokens at which it enters the next bucket
    from_tokens: int
    request: RequestView
    law_moves: bool
    cautious_blocks: int
    held_blocks: int  # without sharing, at the middle of the bucket
    cached_tokens: int
    means: list[int]  # by instant, in units of a token
    variances: list[int]  # by instant, tokens²


class _Candidate(NamedTuple):
    """The share of the last candidate, and what it was computed from."""

    produced_tokens: int
    block_tokens: int
    estimate: LengthEstimate | None
    completions: int
    share: _MemoryShare


def _share(request: RequestView, block_tokens: int) -> _MemoryShare:
    estimate, produced = request.estimate, request.produced_tokens
    if estimate is None:
        raise ValueError(
            f"request {request.id!r} has no length estimate, which overflow-probability needs: name a predictor with "
            "--prediction (for example histogram)"
        )
    # Written with comprehensions and one call for all instants: this is done for every request some 15 times.
    width = 1 << max(_LEAST_WIDTH_BITS, produced.bit_length() - 3)
    age = produced - produced % width
    bound = request.max_output_tokens
    left = _FAR if bound is None else max(1, bound - age)
    held = request.prompt_tokens + age + (width - 1) / 2 + (block_tokens - 1) / 2
    still_there = remaining_survivals(estimate, _BEFORE, age)
    if left < _INSTANTS[-1]:
        still_there = [there if instant <= left else 0.0 for instant, there in zip(_INSTANTS, still_there, strict=True)]
    sizes = [held + instant for instant in _INSTANTS]
    means = [int(there * size * _UNITS) for there, size in zip(still_there, sizes, strict=True)]
    variances = [int(there * (1.0 - there) * size * size) for there, size in zip(still_there, sizes, strict=True)]
    longest = age + min(left, estimate.remaining_quantile(_CAUTIOUS, age))
    return _MemoryShare(
        before_tokens=age + width,
        from_tokens=age,
        request=request,
        law_moves=law_moves(estimate),
        cautious_blocks=-(-(request.prompt_tokens + max(longest, age + width)) // block_tokens),
        held_blocks=-(-(request.prompt_tokens + age + width // 2) // block_tokens),
        cached_tokens=request.cached_prompt_tokens,
        means=means,
        variances=variances,
    )


class _OverflowForecast:
    """Sums over the running requests of one batch, kept up to date by difference."""

    __slots__ = (
        "_completions",
        "_means",
        "_shares",
        "_step",
        "_until",
        "_variances",
        "_version",
        "batch",
        "block_tokens",
        "cached_tokens",
        "cautious_blocks",
        "held_blocks",
    )

    def __init__(self, batch: BatchView, block_tokens: int) -> None:
        self.batch = batch  # kept, so that its id() stays its own
        self.block_tokens = block_tokens
        self.cautious_blocks = 0
        self.held_blocks = 0
        self.cached_tokens = 0
        self._shares: dict[RequestId, _MemoryShare] = {}
        self._means = [0] * len(_INSTANTS)
        self._variances = [0] * len(_INSTANTS)
        self._until: list[int] = []  # by place in the batch: produced tokens at which its share has to be renewed
        self._version: int | None = None
        self._step = -1
        self._completions = 0

    def follow(self, completions: int) -> None:
        """Catch up with the batch: requests that joined, left or grew older."""
        batch = self.batch
        if (batch.version, batch.decode_steps) == (self._version, self._step) and completions == self._completions:
            return
        running = batch.running()
        if batch.version != self._version or completions != self._completions:
            self._take_stock(running, completions)
        else:
            # The same requests in the same order, only older: most of them not old enough to matter.
            due = [
                place
                for place, (request, until) in enumerate(zip(running, self._until, strict=True))
                if request.produced_tokens >= until
            ]
            for place in due:
                self._until[place] = self._renew(running[place]).before_tokens
        self._version, self._step, self._completions = batch.version, batch.decode_steps, completions

    def _take_stock(self, running: Sequence[RequestView], completions: int) -> None:
        learnt, shares = completions != self._completions, self._shares
        here = {request.id for request in running}
        for stranger in [request_id for request_id in shares if request_id not in here]:
            self._add(shares.pop(stranger), -1)
        self._until = []
        for request in running:
            share = shares.get(request.id)
            if (
                share is None
                or not share.from_tokens <= request.produced_tokens < share.before_tokens
                or share.request is not request
                or (learnt and share.law_moves)
            ):
                share = self._renew(request)
            self._until.append(share.before_tokens)

    def _renew(self, request: RequestView) -> _MemoryShare:
        """Replace what is known of a request by what holds at its age."""
        old = self._shares.get(request.id)
        if old is not None:
            self._add(old, -1)
        share = self._shares[request.id] = _share(request, self.block_tokens)
        self._add(share, 1)
        return share

    def fits(self, share: _MemoryShare, memory: MemoryView, z: float) -> bool:
        """Whether mean and z deviations of the use stay within memory at every instant, the newcomer among them."""
        room = memory.blocks_total * self.block_tokens
        used_blocks = memory.blocks_total - memory.blocks_free
        shared = min(max(0, self.held_blocks - used_blocks) * self.block_tokens, self.cached_tokens)
        held_units = max(1, self.held_blocks * self.block_tokens * _UNITS)
        for mean, variance, own_mean, own_variance in zip(
            self._means, self._variances, share.means, share.variances, strict=True
        ):
            need = (mean + own_mean) / _UNITS + z * math.sqrt(variance + own_variance)
            if need > room and need - shared * min(1.0, mean / held_units) > room:
                return False
        return True

    def _add(self, share: _MemoryShare, sign: int) -> None:
        self.cautious_blocks += sign * share.cautious_blocks
        self.held_blocks += sign * share.held_blocks
        self.cached_tokens += sign * share.cached_tokens
        self._means = _sum(self._means, share.means, sign)
        self._variances = _sum(self._variances, share.variances, sign)


def _sum(sums: Sequence[int], parts: Sequence[int], sign: int) -> list[int]:
    if sign > 0:
        return [total + part for total, part in zip(sums, parts, strict=True)]
    return [total - part for total, part in zip(sums, parts, strict=True)]
