"""Choice of a model: what the name in a request stands for, and a fallback where that model cannot serve it now.

Law: a request whose model has no alias and no fallback goes out as it came. The choice is made once, at arrival.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable

from headway.gateway.openai.request_body import Body
from headway.gateway.queueing.outages import can_be_served
from headway.gateway.queueing.queue_keys import shared_model
from headway.gateway.queueing.served_queues import ServedQueues

_LOGGED_SECONDS = 60.0  # between two log lines about one model
log = logging.getLogger("headway.gateway")


class ModelChoice:
    """One per process, beside the queues. `fallbacks` counts requests by (model, the one asked instead)."""

    def __init__(self, served: ServedQueues, clock: Callable[[], float]) -> None:
        self._served = served
        self._now = clock
        self._logged_at: dict[str, float] = {}
        self.fallbacks: Counter[tuple[str, str]] = Counter()

    def rename(self, body: Body) -> str:
        """Give a body that was read the name of the model that it goes to; returns the one that its client wrote."""
        asked = body.model
        body.rename(self.choose(asked))
        return asked

    def may_rename(self, asked: str) -> bool:
        """Whether a request with this name may go to a model of another one."""
        settings = self._served.settings
        model = settings.model_of(asked)
        own = settings.models.get(model)
        return model != asked or (own is not None and bool(own.fallbacks))

    def choose(self, asked: str) -> str:
        """The model that a request with this name goes to."""
        settings = self._served.settings
        model = settings.model_of(asked)
        own = settings.models.get(model)
        if own is None or not own.fallbacks:
            return model
        wait, bound = math.inf, own.fallback_wait_seconds
        if self._lives(model):
            if bound is None:
                return model
            wait = self._wait_seconds(model)
            if wait <= bound:
                return model
        for name in own.fallbacks:
            other = settings.model_of(name)
            if self._lives(other) and self._wait_seconds(other) < wait:
                self._note(model, other, wait)
                return other
        return model

    def _lives(self, model: str) -> bool:
        return can_be_served((model, None, ()), self._served.replicas)

    def _wait_seconds(self, model: str) -> float:
        """Forecast of the wait in its queues, or its base model's; 0 where nothing waits or no forecast is known."""
        shared = shared_model(model, self._served.replicas, self._served.settings)
        queues = (queue for key, queue in self._served.queues.items() if key.model == shared and len(queue))
        return max((queue.drain_seconds() or 0.0 for queue in queues), default=0.0)

    def _note(self, model: str, other: str, wait: float) -> None:
        self.fallbacks[model, other] += 1
        now = self._now()
        if now - self._logged_at.get(model, -math.inf) >= _LOGGED_SECONDS:
            self._logged_at[model] = now
            why = "no healthy replica serves it" if wait == math.inf else f"its queue takes about {wait:.1f} s"
            fields = {"model": model, "fallback": other}
            log.warning("requests for %s go to %s: %s", model, other, why, extra={"fields": fields})
