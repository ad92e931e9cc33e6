"""Ceilings by class: which share of the queue's bounds the less urgent requests may fill.

Law: a request is refused by a ceiling only where requests as little urgent as its class hold that class's share. So
what a ceiling keeps free is never filled by those below it, and the more urgent find it free.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.queueing.waiting_sums import WaitingSums
from headway.gateway.settings import QueueSettings, ServiceTierSettings, class_priority

_ROUNDING = 1e-6  # 0.29 of 100 is 29, though a float says a little less


@dataclass(slots=True)
class _Ceiling:
    """Of all requests of this priority or a less urgent one (a higher number)."""

    name: str
    priority: int
    share: float
    waiting: WaitingSums = field(default_factory=WaitingSums)


class ClassCeilings:
    """The ceilings of all queues together, and what waits below each."""

    def __init__(
        self, bounds: QueueSettings, tiers: ServiceTierSettings, waiting: Iterable[QueuedRequest] = ()
    ) -> None:
        """`waiting` are the requests that wait already."""
        self._bounds = bounds
        self._ceilings = [
            _Ceiling(name, class_priority(name, tiers), share) for name, share in bounds.class_ceilings.items()
        ]
        if self._ceilings:
            for queued in waiting:
                self.joined(queued)

    def joined(self, queued: QueuedRequest) -> None:
        """A request waits from now on."""
        for ceiling in self._ceilings:
            if queued.priority >= ceiling.priority:
                ceiling.waiting.add(queued.prompt_tokens, queued.arrived.body_bytes)

    def left(self, queued: QueuedRequest) -> None:
        """A request waits no more."""
        for ceiling in self._ceilings:
            if queued.priority >= ceiling.priority:
                ceiling.waiting.take(queued.prompt_tokens, queued.arrived.body_bytes)

    def broken(self, queued: QueuedRequest) -> tuple[str, Reason] | None:
        """The first ceiling that breaks if this request waits too, as a message and a reason; None if all hold."""
        bounds = self._bounds
        for ceiling in self._ceilings:
            if queued.priority < ceiling.priority:
                continue
            held = ceiling.waiting
            for amount, most, unit, key in (
                (held.requests + 1, bounds.max_requests, "requests", "max_requests"),
                (held.tokens + queued.prompt_tokens, bounds.max_tokens, "prompt tokens", "max_tokens"),
                (held.bytes + queued.arrived.body_bytes, bounds.max_bytes, "bytes", "max_bytes"),
            ):
                if amount > int(ceiling.share * most + _ROUNDING):
                    share = f"{ceiling.share:.0%} of {most:,} {unit} (`queue.class_ceilings` of `queue.{key}`)"
                    return f"the queue is full for its class {ceiling.name!r}: {share}", Reason.CLASS_FULL
        return None
