"""Policies that raise or answer nonsense, each in its own way; `external` predictors name these functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from headway.domain.request import RequestView

calls = 0


def third_call_fails(request: RequestView) -> float:
    """An output of 100 tokens, except at the third call."""
    global calls  # noqa: PLW0603 - the predictor is named by its path
    calls += 1
    if calls == 3:
        raise RuntimeError("blinked")
    return 100


def always_fails(request: RequestView) -> float:
    """Fails at every call."""
    global calls  # noqa: PLW0603
    calls += 1
    raise RuntimeError("gone")


def nonsense(request: RequestView) -> float:
    """No length."""
    return math.nan


def fails(*_: Any, **__: Any) -> Any:
    """Fails, whatever it is asked."""
    raise RuntimeError("a policy of an outside package")


class FailingRank:
    """A ranked ordering that fails at its third request."""

    def __init__(self) -> None:
        self.asked = 0

    def rank(self, request: RequestView) -> float:
        """Arrival order, twice."""
        self.asked += 1
        if self.asked == 3:
            raise RuntimeError("a rank")
        return request.arrived_at


class MixedRanks(FailingRank):
    """Ranks that cannot be compared with each other."""

    def rank(self, request: RequestView) -> Any:
        """A number, then a tuple."""
        self.asked += 1
        return 1.0 if self.asked % 2 else (1.0, 2.0)


class FailingChoice:
    """A laned ordering that cannot choose."""

    def lane(self, request: RequestView) -> str:
        """One for each tenant."""
        return request.tenant

    def rank(self, request: RequestView) -> float:
        """FCFS."""
        return 0

    def choose(self, heads: Mapping[Any, RequestView], now: float) -> Any:
        """A lane that is not there."""
        return "no such lane"

    def next_change(self, heads: Mapping[Any, RequestView], now: float) -> float:
        """Never."""
        return math.inf


class FailingListener(FailingRank):
    """An ordering that fails at every event."""

    def rank(self, request: RequestView) -> float:
        """Arrival order."""
        return request.arrived_at

    def observe(self, event: object) -> None:
        """Fails."""
        raise RuntimeError("an event")


class FailingAdmission:
    """An admission policy that fails."""

    hold_steps: Callable[..., int] = staticmethod(fails)


class FailingRouting:
    """A routing policy that fails, and cannot hear of dispatches either."""

    choose = staticmethod(fails)
    routed = staticmethod(fails)


class StrangeRouting:
    """A routing policy that names a replica that is not there."""

    def choose(self, *_: Any) -> Any:
        """Nothing that it was given."""
        return object()
