"""Online views: a batch and its KV memory as they would be without offline requests, for policies of online ones."""

from __future__ import annotations

from collections.abc import Sequence

from headway.domain.replica_view import BatchView, MemoryView
from headway.domain.request import RequestView


class OnlineBatch:
    """The online requests of a batch (`BatchView`)."""

    def __init__(self, batch: BatchView) -> None:
        self._batch = batch
        self._running = [request for request in batch.running() if not request.is_offline]

    @property
    def version(self) -> int:
        """Of the whole batch."""
        return self._batch.version

    @property
    def decode_steps(self) -> int:
        """Of the whole batch."""
        return self._batch.decode_steps

    @property
    def size(self) -> int:
        """Online requests that run."""
        return len(self._running)

    def running(self) -> Sequence[RequestView]:
        """They, in order of admission."""
        return self._running


def without_offline(batch: BatchView, memory: MemoryView) -> tuple[BatchView, MemoryView]:
    """A batch and its memory, what offline requests hold being free: they give way to an online one.

    Blocks that several share are counted for each, but never more than there are.
    """
    offline = [request for request in batch.running() if request.is_offline]
    if not offline:
        return batch, memory
    size = memory.block_tokens
    held = sum([-(-(request.prompt_tokens + request.produced_tokens) // size) for request in offline])
    return OnlineBatch(batch), memory._replace(blocks_free=min(memory.blocks_total, memory.blocks_free + held))
