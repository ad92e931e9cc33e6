"""LoRA adapters in the reference engine's memory, as a list that is looked through at each question."""

from __future__ import annotations

from collections.abc import Sequence

from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.reference_blocks import Block, ReferenceBlockMemory
from headway.simulator.reference_request import ReferenceRequest


class _Pages:
    """The KV blocks of one resident adapter (`reference_blocks.Holder`); no request finds them by content."""

    row = -1
    total_tokens = 0

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self.named_blocks = 0


class ReferenceAdapters:
    """Those of one replica. `running` are its requests, kept up to date by the engine."""

    def __init__(
        self, rules: AdapterRules | None, memory: ReferenceBlockMemory, running: Sequence[ReferenceRequest]
    ) -> None:
        """`rules` is None where adapters take nothing."""
        self._rules = rules
        self._memory = memory
        self._running = running
        self._resident: dict[str, _Pages] = {}  # the one that was in use longest ago first
        self._loading = 0

    def may_join(self, request: ReferenceRequest) -> bool:
        """Whether there is a place for its adapter: one without a running request is no obstacle."""
        if self._rules is None or request.adapter is None:
            return True
        return len(self._in_use() | {request.adapter}) <= self._rules.resident_max

    def blocks_for(self, request: ReferenceRequest) -> int:
        """KV blocks that its adapter takes if it joins now."""
        if self._rules is None or request.adapter is None or request.adapter in self._resident:
            return 0
        return self._rules.paged_blocks

    def enter(self, request: ReferenceRequest) -> None:
        """A request has joined the batch: bring its adapter in, in the place of the idle one used longest ago."""
        adapter = request.adapter
        if self._rules is None or adapter is None or adapter in self._resident:
            return
        if len(self._resident) == self._rules.resident_max:
            del self._resident[next(name for name in self._resident if name not in self._in_use())]
        pages = self._resident[adapter] = _Pages()
        self._memory.hand_out(pages, self._rules.paged_blocks)
        self._loading += 1

    def leave(self, request: ReferenceRequest) -> None:
        """A request has left the batch: if it was the last of its adapter, that is idle, or its pages are free."""
        adapter = request.adapter
        if self._rules is None or adapter is None or adapter in self._in_use():
            return
        pages = self._resident.pop(adapter)
        if self._rules.paging == "unified":
            self._memory.release(pages)
        else:
            self._resident[adapter] = pages

    def loading_ps(self) -> int:
        """By how much the step that is composed now is longer, for adapters that it brings in."""
        loading, self._loading = self._loading, 0
        return 0 if self._rules is None else loading * self._rules.load_ps

    def _in_use(self) -> set[str]:
        return {request.adapter for request in self._running if request.adapter is not None}
