"""Step log of the fast engine: every step as a `StepRecord` for the observer, runs of equal steps one by one."""

from __future__ import annotations

from headway.simulator.batch import Batch, Chunks
from headway.simulator.outcome import StepObserver, StepRecord


class StepLog:
    """Writes `StepRecord`s to an observer. Without one `is_read` is false, and nothing need be written."""

    def __init__(self, observer: StepObserver | None) -> None:
        self._observer = observer
        self.is_read = observer is not None
        self._held_over: tuple[int, ...] = ()
        self.admitted: list[int] = []  # rows admitted by the step that is being composed

    def hold_over(self, preempted: tuple[int, ...]) -> None:
        """Keep the rows that a step without tokens preempted: they are reported with the next step."""
        self._held_over += preempted

    def step(
        self,
        started_ps: int,
        duration_ps: int,
        decodes: int,
        context_tokens: int,
        chunks: Chunks,
        preempted: tuple[int, ...],
        blocks_free: int,
    ) -> None:
        """Report one step."""
        if self._observer is not None:
            work = tuple((request.row, tokens, before) for request, tokens, before in chunks)
            preempted, self._held_over = self._held_over + preempted, ()
            admitted = tuple(self.admitted)
            self._observer.on_step(
                StepRecord(started_ps, duration_ps, decodes, context_tokens, work, preempted, admitted, blocks_free)
            )
        self.admitted.clear()

    def run(
        self,
        started_ps: int,
        first_ps: int,
        growth_ps: int,
        steps: int,
        decodes: int,
        context_tokens: int,
        batch: Batch,
        first_step: int,
    ) -> None:
        """Report a run of equal decode steps, the blocks of all of them taken already."""
        if self._observer is None:
            return
        free = batch.memory.free + batch.decoding.blocks_of_run(first_step + 1, steps - 1)
        for i in range(steps):
            free -= batch.decoding.blocks_due(first_step + i) if i else 0
            duration_ps = first_ps + growth_ps * i
            self.step(started_ps, duration_ps, decodes, context_tokens + decodes * i, [], (), free)
            started_ps += duration_ps
