"""Greedy admission: the head joins whenever the engine has room."""

from __future__ import annotations

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView


class Greedy:
    """Admit the head whenever the engine's own gates let it in, as vLLM does.

    Idea: memory that is free now is worth using now; if it runs out later, a request is preempted and recomputed.
    Source: vLLM V1 `Scheduler.schedule`, which asks for free blocks for the prompt only; called "current capacity" in
        Algorithm 1 of arXiv 2606.22327.
    Reads: nothing.
    Wins when: outputs are short beside the prompts, or memory is ample: nothing is held back for nothing.
    Loses when: many running requests grow together past the memory. Then it thrashes: each preemption throws away a
        prefill and all tokens decoded since.
    """

    def hold_steps(self, request: RequestView, batch: BatchView, memory: MemoryView, now: float) -> int:
        """Always 0."""
        return 0
