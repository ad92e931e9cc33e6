"""Prefix groups: requests whose prompts begin alike run one after another, those with most output per prompt first."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Refused
from headway.domain.request import RequestId, RequestView, expected_output_tokens
from headway.policies.contracts import LaneId, Need

_REDRAW_LEAST = 32  # arrivals between two looks at the groups, at least
_LEVELS_MAX = 1 << 30


def _levels() -> Iterator[int]:
    level = 1
    while level < _LEVELS_MAX:
        yield level
        level += max(1, level // 2)


_LEVELS = tuple(_levels())
"""Prefixes of which groups are kept, by their number of hashes: 1, 2, 3, 4, 6, 9, … A prompt of 8,192 blocks has 23."""


class _SharedPrefix:
    """The waiting requests whose prompts share a prefix; groups of longer prefixes lie inside those of shorter ones.

    Attributes:
        number: counted in order of their making, so that two groups of one ratio do not mix.
        members: how many wait.
        output_tokens: expected of them.
        prompt_tokens: that they add, a prefix being counted for the first of those that share it.
        ratio: output per prompt token, as of the latest look; it orders groups.
    """

    __slots__ = ("members", "number", "output_tokens", "prompt_tokens", "ratio")

    def __init__(self, number: int, ratio: float) -> None:
        self.number = number
        self.ratio = ratio
        self.members = 0
        self.output_tokens = 0.0
        self.prompt_tokens = 0


class _WaitingPrompt(NamedTuple):
    """A waiting request.

    Attributes:
        path: hashes of the prefixes of its groups, the shortest first.
        output_tokens: expected of it.
        prompt_tokens: that it adds to its groups.
        ratio: output per token of its whole prompt, by which those of one group go.
    """

    path: tuple[int, ...]
    output_tokens: float
    prompt_tokens: int
    ratio: float


class PrefixGroups:
    """Requests whose prompts begin alike run together; groups and requests with most output per prompt token first.

    Idea: a shared prefix is computed once if those that share it run one after another, before the cache evicts it.
        Groups lie in each other, as prefixes do: a system prompt, a document, a question. At each depth the group with
        the most expected output per prompt token goes first, its prefix counted once: decodes make room in the steps
        for the prompts of the rest.
    Source: BatchLLM, arXiv 2412.03594 (global prefix groups that are scheduled whole, in the order of decode to prompt
        length). Deviations: requests come over time, so the groups are those that wait, and ratios are taken again
        after half as many arrivals as wait. BatchLLM knows all at once and cuts its prefix tree to one level by dynamic
        programming, here every depth counts, in steps of a half. A group that comes later and has a higher ratio goes
        before the rest of one that has begun. No limit of the batch by memory: that is an admission policy's.
    Reads: hashes of the prompt's prefixes, prompt length, the estimate's mean, arrivals and ends.
    Wins when: a backlog of requests shares long prefixes, more of them than the cache holds, as in offline work.
    Loses when: waits matter: a request that shares nothing and has a long prompt waits as long as others keep coming.
        Without shared prefixes it is an order of output per prompt token alone.
    """

    follows_what_is_learned = True
    hears = (Arrived, Admitted, Refused, Cancelled, Completed)
    NEEDS = frozenset([Need.SHARED_PREFIXES])
    redrawn = 0  # looks so far

    def __init__(self) -> None:
        self._waiting: dict[RequestId, _WaitingPrompt] = {}
        self._groups: dict[int, _SharedPrefix] = {}
        self._numbers = count()
        self._arrivals = 0  # since the latest look

    def lane(self, request: RequestView) -> None:
        """One lane, whose ranks are given again at each look."""
        return

    def rank(self, request: RequestView) -> tuple[float, ...]:
        """Minus the ratio and the number of each of its groups, from the shortest prefix on; minus its own ratio."""
        member = self._waiting.get(request.id) or self._join(request)
        rank: list[float] = []
        for prefix in member.path:
            group = self._groups[prefix]
            rank += (-group.ratio, group.number)
        return (*rank, -member.ratio)

    def choose(self, heads: object, now: float) -> LaneId:
        """The one lane."""
        return None

    def next_change(self, heads: object, now: float) -> float:
        """Time changes nothing."""
        return float("inf")

    def observe(self, event: Event) -> None:
        """Keep the groups of what waits; look at their ratios now and then."""
        if not isinstance(event, Arrived):
            self._leave(event.request.id)
            return
        if event.request.id not in self._waiting:
            self._join(event.request)
        self._arrivals += 1
        if self._arrivals >= max(_REDRAW_LEAST, len(self._waiting) // 2):
            self._arrivals = 0
            self.redrawn += 1
            for group in self._groups.values():
                group.ratio = group.output_tokens / group.prompt_tokens

    def _join(self, request: RequestView) -> _WaitingPrompt:
        hashes = request.prefix_hashes
        levels = _LEVELS[: bisect_right(_LEVELS, len(hashes))]
        path = tuple([hashes[level - 1] for level in levels])
        begun = sum([prefix in self._groups for prefix in path])  # a group is made with all that it lies in
        known = levels[begun - 1] if begun else 0
        shared = request.prompt_tokens * known // len(hashes) if known else 0
        output_tokens = expected_output_tokens(request) * request.sequences
        member = _WaitingPrompt(
            path, output_tokens, max(1, request.prompt_tokens - shared), output_tokens / request.prompt_tokens
        )
        self._waiting[request.id] = member
        for prefix in path:
            group = self._groups.get(prefix)
            if group is None:
                group = self._groups[prefix] = _SharedPrefix(next(self._numbers), output_tokens / member.prompt_tokens)
            group.members += 1
            group.output_tokens += member.output_tokens
            group.prompt_tokens += member.prompt_tokens
        return member

    def _leave(self, request_id: RequestId) -> None:
        member = self._waiting.pop(request_id, None)
        for prefix in () if member is None else member.path:
            group = self._groups[prefix]
            group.members -= 1
            if not group.members:
                del self._groups[prefix]
                continue
            assert member is not None
            group.output_tokens -= member.output_tokens
            group.prompt_tokens -= member.prompt_tokens
