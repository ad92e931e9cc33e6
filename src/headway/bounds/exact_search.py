"""Exact optimum of very small instances by best-first search over states, fast enough to solve thousands of them.

A state holds the waiting requests, the running ones with what they hold and have to go, and the time until all arrived.
Each step costs one for every request that has come and is not done, so that the sum of costs is the total latency.
States are taken in the order of cost so far plus a bound on what is left (A*), so the first end reached is an optimum.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple, TypeAlias

from headway.bounds.discrete import DiscreteRequest, Instance, peak_of

Running: TypeAlias = tuple[tuple[int, int], ...]
"""(held, tokens to go) of each that runs, sorted."""


class _State(NamedTuple):
    """`waiting` counts the unstarted of each kind, those still to arrive included; `now` stands once all have come."""

    now: int
    waiting: tuple[int, ...]
    running: Running


def least_total_latency(instance: Instance, *, states_most: int = 20_000) -> int | None:
    """Total latency of the best schedule; None if finding it takes more than `states_most` states.

    Agrees with `optimum.optimum`, which takes larger instances and a hundred times as long for small ones.
    """
    return _Search(instance).run(states_most)


class _Search:
    def __init__(self, instance: Instance) -> None:
        self._memory = instance.memory
        self._kinds = sorted(set(instance.requests), key=lambda kind: (kind.arrived, kind.volume))
        self._latest = max((kind.arrived for kind in self._kinds), default=0)
        self._first = _State(0, tuple(instance.requests.count(kind) for kind in self._kinds), ())

    def run(self, states_most: int) -> int | None:
        ticket = count()  # among equals the latest first: deeper
        heap = [(self._left(self._first), 0, 0, self._first)]
        cost_of = {self._first: 0}
        for _ in range(states_most):
            _, _, cost, state = heapq.heappop(heap)
            if cost > cost_of[state]:
                continue
            if not state.running and not any(state.waiting):
                return cost
            for following, more in self._steps(state):
                total = cost + more
                if total < cost_of.get(following, 1 << 60):
                    cost_of[following] = total
                    heapq.heappush(heap, (total + self._left(following), -next(ticket), total, following))
        return None

    def _steps(self, state: _State) -> Iterator[tuple[_State, int]]:
        """The states that one step can lead to, each with the cost of the step."""
        all_arrived = state.now >= self._latest
        here = [left if all_arrived or kind.arrived <= state.now else 0 for kind, left in self._pairs(state)]
        inside = sum(here) + len(state.running)
        now = min(state.now + 1, self._latest)
        for waiting, running in self._starts(state.waiting, list(state.running), here, 0):
            if not running and now == self._latest == state.now:
                continue  # all have arrived and none runs: waiting any longer gains nothing
            after = tuple(sorted((held + 1, to_go - 1) for held, to_go in running if to_go > 1))
            yield _State(now, waiting, after), inside

    def _starts(
        self, waiting: tuple[int, ...], running: list[tuple[int, int]], here: list[int], kind: int
    ) -> Iterator[tuple[tuple[int, ...], list[tuple[int, int]]]]:
        """Every choice of requests to start that fits in memory, kind by kind."""
        if kind == len(waiting):
            yield waiting, running
            return
        request = self._kinds[kind]
        for started in range(here[kind] + 1):
            if started:
                running = [*running, (request.prompt, request.output)]
                if peak_of(running) > self._memory:
                    return
            left = waiting[kind] - started
            yield from self._starts((*waiting[:kind], left, *waiting[kind + 1 :]), running, here, kind + 1)

    def _left(self, state: _State) -> int:
        """Lower bound on the latency still to come: `discrete.lower_bound` from here on."""
        tokens = sum(to_go for _, to_go in state.running)
        volumes = [to_go * held + to_go * (to_go + 1) // 2 for held, to_go in state.running]
        waits = 0
        for kind, left in self._pairs(state):
            tokens += left * kind.output
            volumes += [kind.volume] * left
            waits += left * max(0, kind.arrived - state.now)
        volumes.sort()
        area = done = 0
        for volume in volumes:
            done += volume
            area += -(-done // self._memory)
        return max(tokens, area - waits)

    def _pairs(self, state: _State) -> Iterator[tuple[DiscreteRequest, int]]:
        return zip(self._kinds, state.waiting, strict=True)
