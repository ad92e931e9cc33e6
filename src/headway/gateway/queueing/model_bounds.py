"""Bounds of single models, `[models."NAME"]`: how many requests, tokens and bytes may wait for one of them.

They count requests by the name of the model or adapter that they go to, whichever queue they are in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.queueing.waiting_sums import WaitingSums
from headway.gateway.settings import ModelSettings


class ModelBounds:
    """The bounds of all models that have settings of their own, and what waits for each."""

    def __init__(self, models: Mapping[str, ModelSettings], waiting: Iterable[QueuedRequest] = ()) -> None:
        """`waiting` are the requests that wait already."""
        self._models = models
        self._waiting = {name: WaitingSums() for name in models}
        if models:
            for queued in waiting:
                self.joined(queued)

    def joined(self, queued: QueuedRequest) -> None:
        """A request waits from now on."""
        sums = self._waiting.get(queued.arrived.model)
        if sums is not None:
            sums.add(queued.prompt_tokens, queued.arrived.body_bytes)

    def left(self, queued: QueuedRequest) -> None:
        """A request waits no more."""
        sums = self._waiting.get(queued.arrived.model)
        if sums is not None:
            sums.take(queued.prompt_tokens, queued.arrived.body_bytes)

    def broken(self, queued: QueuedRequest) -> tuple[str, Reason] | None:
        """The first bound of its model that breaks if a request waits too, as a message and a reason; None if all hold.

        None where nothing waits for that model: a request that is larger than a bound alone may wait alone.
        """
        model = queued.arrived.model
        waiting = self._waiting.get(model)
        if waiting is None or not waiting.requests:
            return None
        own = self._models[model]
        for amount, most, unit, key in (
            (waiting.requests + 1, own.max_requests, "requests", "max_requests"),
            (waiting.tokens + queued.prompt_tokens, own.max_tokens, "prompt tokens", "max_tokens"),
            (waiting.bytes + queued.arrived.body_bytes, own.max_bytes, "bytes", "max_bytes"),
        ):
            if most is not None and amount > most:
                full = f"the queue of {model[:100]!r} is full: its limit is {most:,} {unit} (`models.{key}`)"
                return full, Reason.QUEUE_FULL
        return None
