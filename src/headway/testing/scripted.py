"""Scripted batch and predictor: stand-ins for what surrounds a policy, moved by the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.event import Arrived, Event
from headway.domain.request import Request, RequestId, RequestView


class ScriptedBatch:
    """A `BatchView` whose requests join, leave and decode when the test says so."""

    def __init__(self, running: Sequence[Request] = ()) -> None:
        self._running = list(running)
        self.version = 0
        self.decode_steps = 0

    @property
    def size(self) -> int:
        """Requests running."""
        return len(self._running)

    def running(self) -> Sequence[Request]:
        """In order of admission."""
        return list(self._running)

    def join(self, request: Request) -> None:
        """One more runs, the last in order."""
        self._running.append(request)
        self.version += 1

    def leave(self, request: Request) -> None:
        """One ends or is preempted."""
        self._running.remove(request)
        self.version += 1

    def decode(self, steps: int = 1) -> None:
        """Every running request produces a token a step; none joins or leaves."""
        self.decode_steps += steps
        for request in self._running:
            request.produced_tokens += steps


class StampedPrediction:
    """A `LengthPredictor` that gives each request the estimate laid down for its id."""

    def __init__(self, estimates: Mapping[RequestId, LengthEstimate]) -> None:
        self._estimates = estimates

    def predict(self, request: RequestView) -> LengthEstimate:
        """The estimate laid down; KeyError if there is none."""
        return self._estimates[request.id]


class DriftingPrediction:
    """A `LengthPredictor` that learns: with every arrival it expects another of `lengths` of all requests, in turn."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._arrivals = 0

    def predict(self, request: RequestView) -> LengthEstimate:
        """What it expects of every request at present."""
        return PointEstimate(self._lengths[self._arrivals % len(self._lengths)], "drifting")

    def observe(self, event: Event) -> None:
        """Go on to the next length."""
        self._arrivals += isinstance(event, Arrived)
