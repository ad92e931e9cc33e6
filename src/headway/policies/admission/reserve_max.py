"""Reserve the maximum: the head waits until all requests could run to their bound."""

from __future__ import annotations

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES, Need


class ReserveMax:
    """Admit the head only if it and all running requests would fit in memory at their output bounds.

    Idea: reserve the worst case, and no request that declared its bound is ever preempted.
    Source: TensorRT-LLM's capacity scheduler policy GUARANTEED_NO_EVICT (its documentation and
        `capacityScheduler.cpp`). There `max_new_tokens` is mandatory; here `default_tokens` stands in for a bound that
        no client declared, and without declared bounds nothing is guaranteed.
    Reads: prompt, the client's bound, tokens produced (past an undeclared bound), total memory. No estimate.
    Wins when: bounds are tight, or a preemption is very dear (long prompts, no prefix cache).
    Loses when: clients declare far more than they use, as most do: the batch stays small and memory idle.
    """

    NEEDS = frozenset([Need.STEPS, Need.MEMORY])

    def __init__(self, *, default_tokens: int = 4_096) -> None:
        if default_tokens < 1:
            raise ValueError(f"default_tokens must be at least 1, got {default_tokens}")
        self._default_tokens = default_tokens
        self._kept: dict[int, _Reserved] = {}  # by id() of the batch, one batch a replica

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """0 if the worst case of all fits; a refusal stands until a request leaves."""
        if batch.size == 0:
            return 0
        kept = self._kept.get(id(batch))
        if kept is None or not kept.holds(batch, memory.block_tokens):
            kept = self._kept[id(batch)] = _Reserved(batch, memory.block_tokens, self._default_tokens)
        wanted = _worst_blocks(request, memory.block_tokens, self._default_tokens)
        return 0 if kept.blocks + wanted <= memory.blocks_total else UNTIL_THE_BATCH_CHANGES


class _Reserved:
    """What the running requests of one batch have reserved, good for one version of it."""

    __slots__ = ("batch", "block_tokens", "blocks", "holds_before_step", "version")

    def __init__(self, batch: BatchView, block_tokens: int, default_tokens: int) -> None:
        running = batch.running()
        self.batch = batch  # kept, so that its id() stays its own
        self.version = batch.version
        self.block_tokens = block_tokens
        self.blocks = sum(_worst_blocks(r, block_tokens, default_tokens) for r in running)
        # A request without a bound that outlives the default reserves one token more with every step.
        undeclared = [r.produced_tokens for r in running if r.max_output_tokens is None]
        self.holds_before_step = batch.decode_steps + max(1, default_tokens - max(undeclared, default=-(1 << 62)))

    def holds(self, batch: BatchView, block_tokens: int) -> bool:
        return (
            self.batch is batch
            and self.version == batch.version
            and batch.decode_steps < self.holds_before_step
            and self.block_tokens == block_tokens
        )


def _worst_blocks(request: RequestView, block_tokens: int, default_tokens: int) -> int:
    bound = request.max_output_tokens
    output_tokens = max(default_tokens, request.produced_tokens + 1) if bound is None else bound
    return -(-(request.prompt_tokens + output_tokens) // block_tokens)
