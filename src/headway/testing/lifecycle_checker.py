"""Lifecycle checker: a listener that fails when a request vanishes, or lives twice."""

from __future__ import annotations

import math
from collections import Counter

from headway.domain.event import Arrived, Cancelled, Completed, Event, FirstToken, Refused
from headway.domain.request import RequestId
from headway.scheduling.lifecycle import Stage, after


class LifecycleChecker:
    """A `Listener` that raises AssertionError, with the request's story, on the first event that may not happen.

    Checked: the table of `headway.scheduling.lifecycle`; times that never go backwards, for one request, among
    arrivals, and among all other events (an engine hears of an arrival when its step is over, so these two may
    interleave); at least one output token at the end; and, at `finish`, that every request that arrived has ended or is
    still inside.
    """

    def __init__(self) -> None:
        self._stages: dict[RequestId, Stage] = {}
        self._stories: dict[RequestId, list[str]] = {}
        self._counts: Counter[str] = Counter()
        self._last_at: dict[RequestId, float] = {}
        self._last_arrival = self._last_other = -math.inf

    def observe(self, event: Event) -> None:
        """Follow one event."""
        request = event.request
        kind = type(event).__name__
        story = self._stories.setdefault(request.id, [])
        story.append(f"{kind} at {event.at:.9g} s with {request.produced_tokens} tokens")
        self._keep_time(event)
        try:
            self._stages[request.id] = after(self._stages.get(request.id, Stage.OUTSIDE), event)
        except ValueError as fault:
            raise AssertionError(self._say(request.id, str(fault))) from None
        self._counts[kind] += 1
        match event:
            case Arrived() if request.arrived_at > event.at:
                raise AssertionError(self._say(request.id, f"it arrives only at {request.arrived_at:.9g} s"))
            case FirstToken() if request.produced_tokens < 1:
                raise AssertionError(self._say(request.id, "it has a first token and yet none"))
            case Completed() if not 1 <= event.output_tokens == request.produced_tokens:
                raise AssertionError(self._say(request.id, f"it ended with {event.output_tokens} output tokens"))
            case _:
                pass

    def story(self, request_id: RequestId) -> str:
        """All that happened to one request, a line an event."""
        return "\n".join(self._stories.get(request_id, ["nothing"]))

    def inside(self) -> list[RequestId]:
        """The requests that arrived and have not ended, in order of arrival."""
        return [request_id for request_id, stage in self._stages.items() if stage is not Stage.ENDED]

    def finish(self, still_inside: int = 0) -> None:
        """Check the balance at the end, `still_inside` being how many the shell itself says it still holds."""
        inside = self.inside()
        ended = self._counts[Completed.__name__] + self._counts[Cancelled.__name__]
        stories = "\n\n".join(f"request {request_id!r}:\n{self.story(request_id)}" for request_id in inside[:3])
        assert len(inside) == still_inside, (
            f"{len(inside)} requests never ended, the shell says {still_inside}; the first of them:\n{stories}"
        )
        assert self._counts[Arrived.__name__] == ended + len(inside), f"arrivals and ends differ: {self._counts}"
        assert len(self._stages) == self._counts[Arrived.__name__] + self._counts[Refused.__name__]

    def _keep_time(self, event: Event) -> None:
        arrival = isinstance(event, Arrived | Refused)
        before = max(
            self._last_arrival if arrival else self._last_other, self._last_at.get(event.request.id, -math.inf)
        )
        assert event.at >= before, self._say(event.request.id, f"time went back from {before!r} s to {event.at!r} s")
        self._last_at[event.request.id] = event.at
        if arrival:
            self._last_arrival = event.at
        else:
            self._last_other = event.at

    def _say(self, request_id: RequestId, fault: str) -> str:
        return f"{fault}\nthe story of request {request_id!r}:\n{self.story(request_id)}"
