"""LoRA adapters in the fast engine's memory, counted as requests come and go."""

from __future__ import annotations

from collections import OrderedDict

from headway.domain.request import Request
from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.blocks import BlockMemory


class ResidentAdapters:
    """Those of one replica.

    Attributes:
        loads: how many were brought in so far.
    """

    def __init__(self, rules: AdapterRules, memory: BlockMemory) -> None:
        self._rules = rules
        self._memory = memory
        self._running: dict[str, int] = {}  # adapter in use → running requests of it
        self._idle: OrderedDict[str, None] = OrderedDict()  # resident and not in use, least recently used first
        self._loading = 0  # brought in since the last step
        self.loads = 0

    def may_join(self, request: Request) -> bool:
        """Whether a request's adapter is resident or can be made so: idle ones give way."""
        adapter = request.adapter
        return adapter is None or adapter in self._running or len(self._running) < self._rules.resident_max

    def blocks_for(self, request: Request) -> int:
        """KV blocks that its adapter takes if it joins now."""
        adapter = request.adapter
        return 0 if adapter is None or adapter in self._running else self._rules.paged_blocks

    def enter(self, request: Request) -> None:
        """A request joins the batch; the caller has checked that it may."""
        adapter = request.adapter
        if adapter is None:
            return
        if adapter in self._running:
            self._running[adapter] += 1
            return
        self._running[adapter] = 1
        if adapter in self._idle:
            del self._idle[adapter]
            return
        if len(self._running) + len(self._idle) > self._rules.resident_max:
            self._idle.popitem(last=False)
        self._memory.take(self._rules.paged_blocks)
        self._loading += 1
        self.loads += 1

    def leave(self, request: Request) -> None:
        """A request leaves the batch, whatever for."""
        adapter = request.adapter
        if adapter is None:
            return
        self._running[adapter] -= 1
        if not self._running[adapter]:
            del self._running[adapter]
            if self._rules.paging == "slots":
                self._idle[adapter] = None
            else:
                self._memory.give(self._rules.paged_blocks)

    def loading_ps(self) -> int:
        """By how much the step that is composed now is longer, for adapters that it brings in."""
        loading, self._loading = self._loading, 0
        return loading * self._rules.load_ps
