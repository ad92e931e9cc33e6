"""Requests by name, of a tenant or a replica: in one slice of time, and in all slices of an hour."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from operator import attrgetter

OTHERS = "others"
_NAMES_MAX = 100  # in a slice; who sends most is nearly always among the first of them
_NAMES_SHOWN = 10


class RequestSums:
    """Requests, those of them that were refused or failed, and tokens of their answers."""

    __slots__ = ("name", "not_answered", "output_tokens", "requests")

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.requests = self.not_answered = self.output_tokens = 0

    def subtract(self, other: RequestSums) -> None:
        """Take out what was added before."""
        self.requests -= other.requests
        self.not_answered -= other.not_answered
        self.output_tokens -= other.output_tokens


class NamedSums:
    """Sums by name, and those of all names."""

    __slots__ = ("all", "by_name")

    def __init__(self) -> None:
        self.all = RequestSums()
        self.by_name: dict[str, RequestSums] = {}

    def bounded(self, name: str) -> str:
        """The name to count under: the first hundred names have their own sums, further ones are "others"."""
        return name if name in self.by_name or len(self.by_name) < _NAMES_MAX else OTHERS

    def add(self, name: str, output_tokens: int, *, is_answered: bool) -> None:
        """Add one request."""
        sums, whole = self.by_name.get(name), self.all
        if sums is None:
            sums = self.by_name[name] = RequestSums(name)
        sums.requests += 1
        whole.requests += 1
        sums.output_tokens += output_tokens
        whole.output_tokens += output_tokens
        if not is_answered:
            sums.not_answered += 1
            whole.not_answered += 1

    def subtract(self, other: NamedSums) -> None:
        """Take out what was added before; a name without requests is forgotten."""
        for name, sums in other.by_name.items():
            own = self.by_name[name]
            own.subtract(sums)
            if not own.requests:
                del self.by_name[name]
        self.all.subtract(other.all)

    def requests_of(self, name: str) -> int:
        """Requests under this name."""
        sums = self.by_name.get(name)
        return 0 if sums is None else sums.requests


def largest(hour: NamedSums, parts: Sequence[NamedSums | None]) -> list[dict[str, object]]:
    """The names with most requests in the hour, and of each those in a part of it; None is a part without figures.

    The others are added up as the last entry.
    """
    # Sorting in C takes a tenth of the time of `heapq.nlargest`: there may be 18,000 names.
    most = sorted(hour.by_name.values(), key=attrgetter("requests"), reverse=True)[: _NAMES_SHOWN + 1]
    shown = [sums for sums in most if sums.name != OTHERS][:_NAMES_SHOWN]
    by_slice = [[None if part is None else part.requests_of(sums.name) for part in parts] for sums in shown]
    entries = [_entry(sums, requests) for sums, requests in zip(shown, by_slice, strict=True)]
    rest = copy(hour.all)
    rest.name = OTHERS
    for sums in shown:
        rest.subtract(sums)
    if rest.requests:
        requests = [None if part is None else part.all.requests - _requests_of(shown, part) for part in parts]
        entries.append(_entry(rest, requests))
    return entries


def _requests_of(shown: list[RequestSums], part: NamedSums) -> int:
    return sum(part.requests_of(sums.name) for sums in shown)


def _entry(sums: RequestSums, by_slice: list[int | None]) -> dict[str, object]:
    return {
        "name": sums.name,
        "requests": sums.requests,
        "not_answered": sums.not_answered,
        "output_tokens": sums.output_tokens,
        "by_slice": by_slice,
    }
