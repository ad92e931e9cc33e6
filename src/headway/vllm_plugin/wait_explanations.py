"""Who waited for what: told of every first admission, and to whoever asks by a request's id, waiting or not.

Laws: what is kept is bounded; nothing of a request's text is known here; `told` may be called by another thread.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

from headway.vllm_plugin.request_entries import Entry, Place
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
    """The latest stories and the clocks behind them.

    Args:
        entries: all requests in the engine by id.
        order: the ordering that rules now.
        clock: the engine's clock, seconds.
    """

    def __init__(self, entries: Mapping[str, Entry], order: Callable[[], str], clock: Callable[[], float]) -> None:
        self.clocks = WaitClocks()
        self._entries = entries
        self._order = order
        self._clock = clock
        self._latest: deque[WaitExplanation] = deque(maxlen=REMEMBERED)

    def admitted(self, entry: Entry, now: float) -> WaitExplanation:
        """A request came in for the first time."""
        story = self._of(entry, "admitted", now)
        self._latest.append(story)
        return story

    def facts(self, story: WaitExplanation) -> dict[str, object]:
        """A story as plain values."""
        wait = self.clocks.wait(story.arrival, story.began, story.ended)
        size = f"{story.prompt_tokens} prompt tokens, {story.cached_prompt_tokens} cached"
        return {
            "request": story.request_id,
            "state": story.state,
            "admitted_at": story.ended.at if story.state == "admitted" else None,
            "waited_seconds": round(wait.seconds, 6),
            "by_reason_seconds": {name: round(seconds, 6) for name, seconds in wait.by_reason.items()},
            "overtaken_by": wait.overtaken_by,
            "order": story.order,
            "prompt_tokens": story.prompt_tokens,
            "cached_prompt_tokens": story.cached_prompt_tokens,
            "why": f"({size}; order {story.order}) {in_words(wait)}",
        }

    def told(self, request_id: str) -> dict[str, object] | None:
        """The story of a request, by its own id or by that which its client knows; the longest wait of several parts.

        vLLM puts a number in front of the id for each of several answers, and a prefix and a random end around what a
        client sent as X-Request-Id. None if it is neither in the engine nor among the latest.
        """
        same = re.compile(rf"(\d+_)?([a-z]+-)?{re.escape(request_id)}(-.*)?").fullmatch
        found = [story for story in _undisturbed(lambda: list(self._latest)) if same(story.request_id)]
        for entry in _undisturbed(lambda: list(self._entries.values())):
            if entry.admission < 0 and same(entry.request.request_id):
                state = "parked" if entry.place is Place.PARKED else "waiting"
                found.append(self._of(entry, state, self._clock()))
        if not found:
            return None
        longest = max(found, key=lambda story: story.ended.at - story.began.at)
        return {**_undisturbed(lambda: self.facts(longest)), "parts": len(found)}

    def _of(self, entry: Entry, state: str, now: float) -> WaitExplanation:
        view = entry.view
        return WaitExplanation(
            str(view.id),
            state,
            entry.arrival,
            entry.began,
            self.clocks.reading(now),
            self._order(),
            view.prompt_tokens,
            view.cached_prompt_tokens,
        )


def _undisturbed(read: Callable[[], Item]) -> Item:
    """What `read` finds at an instant at which the engine's thread does not change it."""
    while True:
        try:
            return read()
        except RuntimeError:  # changed while it was read
            continue
