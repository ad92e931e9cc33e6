"""Wait explanations: why each request waits, or waited until its first admission, by request id.

Laws: what is kept is bounded; no text of a request is known here; `explain` may be called by another thread.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from headway.domain.request import RequestId
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.wait_clocks import Reading, WaitClocks, in_words

Item = TypeVar("Item")
REMEMBERED = 4_096  # first admissions; some 300 bytes each


class WaitExplanation(NamedTuple):
    """One request's wait until its first admission, or until now."""

    request_id: str
    state: str
    arrival: int
    began: Reading
    ended: Reading
    order: str
    prompt_tokens: int
    cached_prompt_tokens: int


class WaitExplanations:
    """The latest explanations and the clocks behind them."""

    def __init__(self, offline_order: str = "fcfs") -> None:
        self.offline_order = offline_order  # of offline requests among themselves
        self.clocks = WaitClocks()
        self._latest: deque[WaitExplanation] = deque(maxlen=REMEMBERED)

    def admitted(self, entry: Entry, order: str, now: float) -> WaitExplanation:
        """A request was admitted for the first time, under the ordering `order`."""
        explanation = self._of(entry, "admitted", order, now)
        self._latest.append(explanation)
        return explanation

    def facts(self, explanation: WaitExplanation) -> dict[str, object]:
        """An explanation as plain values."""
        wait = self.clocks.wait(explanation.arrival, explanation.began, explanation.ended)
        size = f"{explanation.prompt_tokens} prompt tokens, {explanation.cached_prompt_tokens} cached"
        return {
            "request": explanation.request_id,
            "state": explanation.state,
            "admitted_at": explanation.ended.at if explanation.state == "admitted" else None,
            "waited_seconds": round(wait.seconds, 6),
            "by_reason_seconds": {name: round(seconds, 6) for name, seconds in wait.by_reason.items()},
            "overtaken_by": wait.overtaken_by,
            "order": explanation.order,
            "prompt_tokens": explanation.prompt_tokens,
            "cached_prompt_tokens": explanation.cached_prompt_tokens,
            "why": f"({size}; order {explanation.order}) {in_words(wait)}",
        }

    def explain(
        self, request_id: str, entries: Mapping[RequestId, Entry], order: str, now: float
    ) -> dict[str, object] | None:
        """The explanation of a request, by its own id or its client's; of several parts that of the longest wait.

        vLLM puts a number in front of the id for each of several answers, and a prefix and a random end around what a
        client sent as X-Request-Id. None if it is neither among `entries` nor among the latest.
        """
        same = re.compile(rf"(\d+_)?([a-z]+-)?{re.escape(request_id)}(-.*)?").fullmatch
        parts = [part for part in _undisturbed(lambda: list(self._latest)) if same(part.request_id)]
        for entry in _undisturbed(lambda: list(entries.values())):
            if entry.admission < 0 and same(entry.id):
                state = "parked" if entry.is_parked else "waiting"
                parts.append(self._of(entry, state, order, now))
        if not parts:
            return None
        longest = max(parts, key=lambda part: part.ended.at - part.began.at)
        return {**_undisturbed(lambda: self.facts(longest)), "parts": len(parts)}

    def _of(self, entry: Entry, state: str, order: str, now: float) -> WaitExplanation:
        return WaitExplanation(
            entry.id,
            state,
            entry.arrival,
            entry.wait_began,
            self.clocks.reading(now),
            f"{self.offline_order} behind all online requests" if entry.view.is_offline else order,
            entry.view.prompt_tokens,
            entry.view.cached_prompt_tokens,
        )


def _undisturbed(read: Callable[[], Item]) -> Item:
    """The result of `read` at an instant at which the engine's thread does not change what is read."""
    while True:
        try:
            return read()
        except RuntimeError:  # changed while it was read
            continue
