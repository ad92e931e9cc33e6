"""Request book: the entry of every request in the engine, made at its arrival and kept until its end."""

from __future__ import annotations

from headway.domain.request import RequestId, uncached_prefill_tokens
from headway.scheduling.harm_judge import WaitComparison
from headway.vllm_plugin import vllm_adapter as vllm
from headway.vllm_plugin.prefix_hits import PrefixHits
from headway.vllm_plugin.reporting import Reporter
from headway.vllm_plugin.request_entries import EngineBatch, Entry, view_of
from headway.vllm_plugin.vllm_adapter import VllmRequest
from headway.vllm_plugin.xargs_hints import NO_HINTS, HintedLengths, read_hints


class RequestBook:
    """Entries by request id, and the batch of those that run.

    Args:
        hinted: the predictor that hinted lengths are given to; None ignores all hints.
        prefix_hits: looks prompts up in the prefix cache; None looks up none.
        comparison: of our waits with FCFS's; it counts arrivals, admissions and leaving clients.
        report: metrics and explanations, which count the same.
    """

    def __init__(
        self,
        *,
        hinted: HintedLengths | None,
        prefix_hits: PrefixHits | None,
        comparison: WaitComparison,
        report: Reporter,
    ) -> None:
        self.entries: dict[RequestId, Entry] = {}
        self.batch = EngineBatch()
        self._hinted = hinted
        self._prefix_hits = prefix_hits
        self._comparison = comparison
        self._report = report
        self._arrivals = 0

    def get(self, request: VllmRequest) -> Entry | None:
        """The request's entry; None before its arrival and after its end."""
        return self.entries.get(vllm.request_id(request))

    def add(self, request: VllmRequest, now: float) -> Entry:
        """A request arrived: read its hints, look its prompt up, make its entry."""
        hints = NO_HINTS
        if self._hinted is not None:
            hints = read_hints(vllm.extra_arguments(request))
            if hints.ignored:
                self._report.hints_ignored(hints.ignored)
        entry = Entry(request, view_of(request, hints, now), hints, self._arrivals)
        self._arrivals += 1
        self.entries[entry.id] = entry
        if self._hinted is not None and hints.expected_tokens is not None:
            self._hinted.hint(entry.id, hints.expected_tokens)
        if self._prefix_hits is not None:
            self._prefix_hits.arrive(entry, now)
        entry.work = uncached_prefill_tokens(entry.view)
        entry.wait_began = self._report.explanations.clocks.reading(now)
        if not entry.view.is_offline:  # which waits by intent
            self._comparison.arrive(entry.arrival, now, entry.work)
        return entry

    def look_up_again(self, entry: Entry, now: float) -> bool:
        """Ask the prefix cache about the head of the queue if its answer is old; True if its work changed much."""
        return self._prefix_hits is not None and self._prefix_hits.refresh(entry, now)

    def admit(self, entry: Entry, now: float) -> None:
        """The request joined the batch, for the first time or again."""
        self.batch.join(entry)
        first = entry.admission < 0
        entry.admission = self._report.explanations.clocks.admit(entry.arrival)
        if first:
            if not entry.view.is_offline:
                self._comparison.admit(entry.arrival, entry.view.arrived_at, now, entry.work)
            self._report.admitted(entry, now)

    def remove(self, entry: Entry, now: float) -> None:
        """The request ended, and the queue has forgotten it."""
        del self.entries[entry.id]
        if entry.admission < 0 and not (entry.turn_over or entry.view.is_offline):
            self._comparison.leave(entry.arrival, now)
