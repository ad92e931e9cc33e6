"""One request as the plug-in keeps it: vLLM's object, our view of it, and where it stands.

vLLM never tells true lengths, and neither can this view: it is made of the prompt, the tokens that came, and hints.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol

from headway.domain.request import Request
from headway.vllm_plugin.wait_clocks import Reading
from headway.vllm_plugin.xargs_hints import XargsHints

NOWHERE = Reading(0.0, (), 0)


class VllmRequest(Protocol):
    """What is read of a `vllm.v1.request.Request`."""

    request_id: str
    priority: int
    max_tokens: int
    num_prompt_tokens: int
    num_computed_tokens: int
    status: Any
    sampling_params: Any
    block_hashes: Sequence[Any]

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""

    @property
    def num_output_tokens(self) -> int:
        """Output so far."""


class Place(Enum):
    """Where a request stands, as far as our queue knows."""

    QUEUED = "queued"  # in our order
    PARKED = "parked"  # vLLM said that it cannot run yet (grammar, remote KV): asked about apart
    DEFERRED = "deferred"  # stepped over in this scan (LoRA limit, connector not sure): offered again in the next
    ELSEWHERE = "elsewhere"  # stepped over just now, or in a queue of vLLM's own (requests that hold KV blocks)
    RUNNING = "running"
    ENDED = "ended"


class Entry:
    """A request between its arrival in the engine and its end."""

    __slots__ = (
        "admission",
        "arrival",
        "began",
        "first_token_came",
        "hints",
        "looked_up_at",
        "place",
        "produced_at_admission",
        "request",
        "resumed",
        "turn_over",
        "view",
        "work",
    )

    def __init__(self, request: VllmRequest, view: Request, hints: XargsHints, arrival: int) -> None:
        self.request = request
        self.view = view
        self.hints = hints
        self.arrival = arrival  # which one it was, counted from 0
        self.place = Place.QUEUED
        self.resumed = False  # it was preempted and waits again
        self.turn_over = False  # a session's: it waits for its client's next input, with its blocks
        self.admission = -1  # which admission was its latest, counted from 0
        self.first_token_came = False
        self.produced_at_admission = 0
        self.work = 0  # prefill tokens when it came, as the live FCFS estimate counts them
        self.looked_up_at = float("-inf")  # when the prefix cache was last asked
        self.began = NOWHERE  # the waits' clocks when it came

    def refresh(self) -> Request:
        """The view with the tokens that came since."""
        self.view.produced_tokens = self.request.num_output_tokens
        return self.view


def view_of(request: VllmRequest, hints: XargsHints, now: float) -> Request:
    """What policies may see of a request that arrives at `now` (seconds, the engine's monotonic clock).

    A gateway's rank stands in for the priority of a client that gave none.
    """
    priority = request.priority or 0
    if priority == 0 and hints.rank is not None:
        priority = hints.rank
    session = hints.session or getattr(request, "session_id", None)
    produced = request.num_output_tokens
    return Request(
        request.request_id,
        now,
        request.num_tokens - produced,
        tenant=hints.tenant,
        session=session,
        max_output_tokens=request.max_tokens,
        deadline=None if hints.deadline_seconds is None else now + hints.deadline_seconds,
        priority=priority,
        produced_tokens=produced,
    )


class EngineBatch:
    """vLLM's running requests as a `BatchView`."""

    def __init__(self) -> None:
        self.version = 0
        self.decode_steps = 0
        self._entries: dict[str, Entry] = {}

    @property
    def size(self) -> int:
        """Requests running."""
        return len(self._entries)

    def running(self) -> list[Request]:
        """In order of admission, tokens up to date."""
        return [entry.refresh() for entry in self._entries.values()]

    def join(self, entry: Entry) -> None:
        """One more runs."""
        self._entries[entry.request.request_id] = entry
        self.version += 1

    def leave(self, request_id: str) -> None:
        """One runs no longer; strangers are ignored."""
        if self._entries.pop(request_id, None) is not None:
            self.version += 1
