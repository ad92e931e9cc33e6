"""Recent traffic: how many requests came in the last minutes, and how large those were that ended.

Law: what is older than the window counts no more; memory is bounded by the number of slices, whatever comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from headway.scheduling.stability import RequestNeeds, volume

_SLICES = 30
_SECONDS_MIN = 60.0  # that a rate is taken over, so that the first requests after a pause are no flood


@dataclass(slots=True)
class TrafficSums:
    """Sums over requests; `largest_tokens` is a maximum.

    Attributes:
        offered: that came.
        answered: of all that ended in this time, those answered whole, which alone tell of lengths.
        computed_prompt_tokens, seat_steps, token_steps, largest_tokens: of those, see `RequestNeeds`.
    """

    offered: int = 0
    answered: int = 0
    computed_prompt_tokens: float = 0.0
    seat_steps: float = 0.0
    token_steps: float = 0.0
    largest_tokens: float = 0.0

    def add(self, other: TrafficSums) -> None:
        """Take other sums too."""
        self.offered += other.offered
        self.answered += other.answered
        self.computed_prompt_tokens += other.computed_prompt_tokens
        self.seat_steps += other.seat_steps
        self.token_steps += other.token_steps
        self.largest_tokens = max(self.largest_tokens, other.largest_tokens)

    def needs(self) -> RequestNeeds | None:
        """The means; None where no request was answered."""
        number = self.answered
        if not number:
            return None
        return RequestNeeds(
            self.computed_prompt_tokens / number,
            self.seat_steps / number,
            self.token_steps / number,
            self.largest_tokens,
        )


class RecentTraffic:
    """Of one model. Times are seconds on one clock and do not go back."""

    def __init__(self, window_seconds: float) -> None:
        self._slice_seconds = window_seconds / _SLICES
        self._slices: deque[tuple[int, TrafficSums]] = deque(maxlen=_SLICES)

    def arrived(self, now: float, requests: int = 1) -> None:
        """Requests came; fewer than 0 take back what was counted at `now`, if that is still in the window."""
        wanted = int(now // self._slice_seconds)
        if requests > 0:
            self._now(now).offered += requests
            return
        for number, sums in self._slices:
            if number == wanted:
                sums.offered = max(0, sums.offered + requests)

    def answered(
        self, now: float, prompt_tokens: int, computed_tokens: int, output_tokens: int, sequences: int
    ) -> None:
        """A request was answered whole; `output_tokens` are those of all its sequences."""
        each = output_tokens / sequences
        seat_steps, token_steps = volume(prompt_tokens, each, sequences)
        sums = self._now(now)
        sums.answered += 1
        sums.computed_prompt_tokens += computed_tokens
        sums.seat_steps += seat_steps
        sums.token_steps += token_steps
        sums.largest_tokens = max(sums.largest_tokens, prompt_tokens + output_tokens)

    def forget_old(self, now: float) -> bool:
        """Forget what has left the window; True if nothing is left."""
        oldest = int(now // self._slice_seconds) - _SLICES
        while self._slices and self._slices[0][0] <= oldest:
            self._slices.popleft()
        return not self._slices

    def sums(self) -> Iterable[TrafficSums]:
        """Of each slice."""
        return [sums for _, sums in self._slices]

    def seconds(self, now: float) -> float:
        """Seconds that the sums are of: since the first request in the window, but at least a minute or the window."""
        if not self._slices:
            return _SECONDS_MIN
        least = min(_SECONDS_MIN, _SLICES * self._slice_seconds)
        return max(least, now - self._slices[0][0] * self._slice_seconds)

    def _now(self, now: float) -> TrafficSums:
        number = int(now // self._slice_seconds)
        if not self._slices or self._slices[-1][0] != number:
            self._slices.append((number, TrafficSums()))
        return self._slices[-1][1]
