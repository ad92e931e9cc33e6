"""Schedule of lane learning: a sliding window of the sizes of arrived requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Literal, TypeAlias

from headway.policies.lanes.partition import Span

Due: TypeAlias = Literal["nothing", "adjustment", "partition"]

FIRST_REQUESTS = 250  # before that there is nothing to learn from, and bubble lanes serve
ADJUST_REQUESTS = 250  # arrivals between two light adjustments of the edges


class LaneLearner:
    """A window of sizes, and a full partition after 250 arrivals, after 500, 1,000, …, then every `relearn_requests`.

    With `relearn_requests` 0 lanes are learned once and then kept as they are: a frozen partition.
    """

    def __init__(
        self, partition: Callable[[Sequence[int]], tuple[Span, ...]], *, window_requests: int, relearn_requests: int
    ) -> None:
        if window_requests < 2:
            raise ValueError(f"window_requests must be at least 2, got {window_requests}")
        if relearn_requests < 0:
            raise ValueError(f"relearn_requests must be at least 0 (0: learn once), got {relearn_requests}")
        self.partition = partition
        self._relearn = relearn_requests
        self._window: deque[int] = deque(maxlen=window_requests)
        self.seen = 0
        self._next = FIRST_REQUESTS

    def note(self, size: int) -> Due:
        """One more request arrived; says what is to be done about it."""
        self._window.append(size)
        self.seen += 1
        if self._next and self.seen >= self._next:
            self._next = self.seen + min(self.seen, self._relearn) if self._relearn else 0
            return "partition"
        return "adjustment" if self._next and self.seen % ADJUST_REQUESTS == 0 else "nothing"

    def window(self) -> list[int]:
        """The sizes, oldest first."""
        return list(self._window)

    def latest(self) -> list[int]:
        """The sizes since about the last adjustment."""
        return list(islice(self._window, max(0, len(self._window) - ADJUST_REQUESTS), None))

    def resume(self, sizes: Iterable[int], seen: int) -> None:
        """Go on from a window and a count that were saved."""
        self._window.extend(sizes)
        self.seen = seen
        if seen < FIRST_REQUESTS:
            self._next = FIRST_REQUESTS  # saved before there were lanes
        else:
            self._next = seen + min(seen, self._relearn) if self._relearn else 0
