"""Past-Future admission: the head waits while it would overfill memory in a drawn future."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

from headway.domain.estimate import LengthEstimate
from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.contracts import Need


class PastFutureAdmission:
    """Admit the head while the peak of a few drawn futures stays within memory.

    Idea: draw an output length for each running request and for the head, from lengths seen lately that are longer than
        what was produced. Work out the peak of memory exactly for that draw. Take the worst of a few draws.
    Source: Past-Future, arXiv 2507.10150, as in its code (ModelTC/lightllm, branch `future_past_router`): min(5,
        ⌊200/batch⌋ + 1) independent draws, held c = input + out and remaining r = L − out − 1 for a running request, c
        = input + out + 1 and r = L − out − 2 (at least 0) for the waiting one (out is above 0 after a preemption),
        L drawn without regard to out, as published. M* = max over m of r_m·m + Σ c_j, r descending;
        admit while M* < (1 − `reserve`) of memory, `reserve` = 5 %. Everything is drawn again each time, so a refused
        head tries again until a draw favours it. `steps_between` = 2 engine steps lie between attempts, as in the
        authors' artefact server; attempts start whatever the batch. Draws come from a hash of seed, step, draw and
        request. Prompt cache: none is subtracted, since a view does not tell what is pinned.
    Reads: the length estimates (`--prediction past-future` is the published law), prompt and produced tokens, total
        memory, the seed.
    Wins when: memory is the bottleneck and lengths are known only as a history.
    Loses when: the batch is small, for one or few draws decide; or a head stays refused for long, since each attempt is
        another lot. Tokens are counted, not blocks.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY])

    def __init__(self, *, seed: int, reserve: float = 0.05, steps_between: int = 2) -> None:
        self._seed = seed
        self._attempts = Attempts(reserve, steps_between)

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if no draw overfills memory; else the steps to the next attempt."""
        step = batch.decode_steps
        return self._attempts.hold_steps(
            request, batch, memory, lambda running: [f"{self._seed}/{step}/{n}" for n in range(draws(running))]
        )


class Attempts:
    """When the head is tried, and how much memory a drawn future may fill: the part that both forms share."""

    def __init__(self, reserve: float, steps_between: int) -> None:
        if not 0 <= reserve < 1:
            raise ValueError(f"reserve must be at least 0 and below 1, got {reserve:g}")
        if steps_between < 1:
            raise ValueError(f"steps_between must be at least 1, got {steps_between}")
        self._reserve = reserve
        self._steps_between = steps_between

    def hold_steps(
        self, request: RequestView, batch: BatchView, memory: MemoryView, streams: Callable[[int], Sequence[str]]
    ) -> int:
        """0 if no draw overfills memory; else the steps to the next attempt.

        `streams` names the draws beside so many running requests; it is asked when the head is tried.
        """
        if batch.size == 0:
            return 0
        late = batch.decode_steps % self._steps_between
        if late:
            return self._steps_between - late
        capacity = memory.blocks_total * memory.block_tokens * (1 - self._reserve)
        running = batch.running()
        fits = all(peak_tokens(running, request, stream) < capacity for stream in streams(len(running)))
        return 0 if fits else self._steps_between


def draws(running: int) -> int:
    """How many futures are drawn for a batch of this size (the published constants)."""
    return min(5, 200 // running + 1) if running else 1


def peak_tokens(running: Sequence[RequestView], candidate: RequestView, stream: str) -> int:
    """M* of one drawn future of the running requests and the candidate, drawn from this stream."""
    needs = []
    for request in running:
        estimate, produced = _estimate(request), request.produced_tokens
        remaining = estimate.remaining_quantile(lot(stream, request), produced) - 1
        needs.append((remaining, request.prompt_tokens + produced))
    produced = candidate.produced_tokens
    length = _estimate(candidate).remaining_quantile(lot(stream, candidate), 0)
    needs.append((max(0, length - produced - 2), candidate.prompt_tokens + produced + 1))
    needs.sort(reverse=True)
    held = peak = 0
    for rank, (remaining, tokens) in enumerate(needs, 1):
        held += tokens
        peak = max(peak, remaining * rank + held)
    return peak


def lot(stream: str, request: RequestView) -> float:
    """A number evenly spread over (0, 1), the same for the same stream and request."""
    digest = blake2b(f"{stream}/{request.id!r}".encode(), digest_size=8, person=b"past-future").digest()
    return ((int.from_bytes(digest, "big") >> 12) + 0.5) * 2.0**-52


def _estimate(request: RequestView) -> LengthEstimate:
    if request.estimate is None:
        raise ValueError(
            f"request {request.id!r} has no length estimate, which past-future needs: name a predictor with "
            "--prediction (for example past-future)"
        )
    return request.estimate
