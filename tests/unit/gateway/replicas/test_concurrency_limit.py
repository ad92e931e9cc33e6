"""The concurrency limit grows while it is used, falls on congestion, and takes no prompt for congestion."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit, FirstByteTime


def test_the_limit_grows_while_it_is_used_and_backs_off_at_most_once_a_second() -> None:
    limit = ConcurrencyLimit()
    start = limit.requests_max
    limit.answered(1, None, 0.0)
    assert limit.requests_max == start
    for _ in range(10):
        limit.answered(limit.requests_max, None, 0.0)
    assert limit.requests_max == start + 10
    limit.congested(40, 1.0)
    limit.congested(40, 1.5)
    assert limit.requests_max == 36
    for _ in range(37):
        limit.answered(36, None, 3.0)
    assert limit.requests_max == 37
    for at in range(200):
        limit.congested(0, 10.0 + 2 * at)
    assert limit.requests_max == 1
    assert ConcurrencyLimit(fixed=5).requests_max == 5


Times = Callable[[random.Random, float], tuple[float, float]]
"""Of one request at a time: seconds until its first byte without any queue, and those expected of its prompt."""


def replay(
    first_byte: Times, *, clients: int, slots: int, seconds: float = 120.0, decode: float = 0.4, seed: int = 3
) -> list[int]:
    """The limits over a closed loop of clients in front of an engine with `slots` that serves first come, first served.

    A limit is noted at each first byte from the tenth second on.
    """
    limit, chance = ConcurrencyLimit(), random.Random(seed)
    free = [0.0] * slots  # when each slot is free
    events: list[tuple[float, int, str, float, float]] = [(0.001 * n, n, "arrives", 0.0, 0.0) for n in range(clients)]
    heapq.heapify(events)
    inside, silent, waiting, limits = 0, 0, [], []
    while events and events[0][0] < seconds:
        now, client, what, sent, expected = heapq.heappop(events)
        if what == "first byte":
            time = now - sent
            silent -= 1
            limit.answered(inside, FirstByteTime(time, time / expected), now, silent)
            if now >= 10.0:
                limits.append(limit.requests_max)
            continue
        if what == "ends":
            inside -= 1
        waiting.append(client)
        while waiting and inside < limit.requests_max:
            client = waiting.pop(0)
            inside += 1
            silent += 1
            took, expected = first_byte(chance, now)
            begins = max(now, heapq.heappop(free))
            ends = begins + took + decode * chance.uniform(0.5, 1.5)
            heapq.heappush(free, ends)
            heapq.heappush(events, (begins + took, client, "first byte", now, expected))
            heapq.heappush(events, (ends, client, "ends", now, expected))
    return limits


def constant(chance: random.Random, now: float) -> tuple[float, float]:
    """A fixed cost, one prompt in nine very long."""
    return 0.1, 0.02 + (7_500 * 2e-5 if chance.random() < 1 / 9 else 0.0)


def proportional(chance: random.Random, now: float) -> tuple[float, float]:
    """Prompts of 10 to 60,000 tokens; a minute of long ones only."""
    tokens = chance.randint(30_000, 60_000) if now > 60.0 else int(10 ** chance.uniform(1, 4.5))
    return 0.03 + tokens * 3e-5, 0.02 + tokens * 2e-5


def cached(chance: random.Random, now: float) -> tuple[float, float]:
    """One size of prompt, nine of ten in the engine's prefix cache."""
    return 0.05 if chance.random() < 0.9 else 1.5, 0.2


def images(chance: random.Random, now: float) -> tuple[float, float]:
    """Images of which the expected time knows nothing."""
    return chance.uniform(0.5, 3.0) if chance.random() < 0.5 else 0.05, 0.02


@pytest.mark.parametrize("first_byte", [constant, proportional, cached, images])
@pytest.mark.parametrize("clients", [3, 9, 40])
def test_prompts_that_differ_are_no_congestion(first_byte: Times, clients: int) -> None:
    assert min(replay(first_byte, clients=clients, slots=clients)) >= clients


def test_a_cache_that_was_emptied_is_no_congestion_for_long() -> None:
    """Every prompt takes thirty times as long from one moment on: one decrease finds no relief, and is undone."""

    def emptied(chance: random.Random, now: float) -> tuple[float, float]:
        return (0.05, 0.2) if now < 60.0 else (1.5, 0.2)

    limits = replay(emptied, clients=30, slots=30, seconds=200.0)
    assert min(limits) >= 27
    assert limits[-1] >= 30


@pytest.mark.parametrize("slots", [4, 12])
def test_a_queue_in_the_engine_is_congestion(slots: int) -> None:
    """More clients come than it has seats: its queue delays everybody, and the limit goes down towards the seats."""
    alone = replay(constant, clients=2, slots=slots)
    assert min(alone) >= 32

    def crowded(chance: random.Random, now: float) -> tuple[float, float]:
        return 0.02, 0.02

    limits = replay(crowded, clients=100, slots=slots, seconds=400.0, decode=0.2)
    assert max(limits[-500:]) <= 60  # of 100 that ask


def at_once(chance: random.Random, now: float) -> tuple[float, float]:
    """Short prompts, known to be."""
    return 0.02, 0.02


def mixed(chance: random.Random, now: float) -> tuple[float, float]:
    """Prompts of 10 to 10,000 tokens."""
    tokens = int(10 ** chance.uniform(1, 4))
    return 0.02 + tokens * 3e-5, 0.02 + tokens * 2e-5


@pytest.mark.parametrize("first_byte", [at_once, mixed, images])
@pytest.mark.parametrize(
    ("slots", "decode", "most"),
    [
        (2, 0.2, 16),
        (4, 0.2, 24),
        (8, 0.2, 32),
        (64, 0.2, 256),
        (2, 2.0, 6),
        (4, 2.0, 9),
        (8, 2.0, 13),
        (64, 2.0, 84),
        (8, 10.0, 12),
        (64, 10.0, 84),
    ],
)
def test_the_limit_comes_near_the_seats_of_an_engine_without_figures(
    first_byte: Times, slots: int, decode: float, most: int
) -> None:
    """Minutes of more clients than seats: then their queue is ours, and no seat is empty for long."""
    middles, seconds = [], 900.0 if slots < 64 else 450.0
    for seed in (3, 4, 5):
        limits = replay(first_byte, clients=max(200, 4 * slots), slots=slots, seconds=seconds, decode=decode, seed=seed)
        late = sorted(limits[-len(limits) // 4 :])
        assert late[len(late) // 10] >= 3 * slots // 4
        middles.append(late[len(late) // 2])
    assert slots <= sorted(middles)[1] <= most, middles


def test_a_decrease_without_relief_is_tried_ever_more_seldom() -> None:
    """Prompts of ten seconds and answers of none look like one seat, but fewer requests make none of them quicker."""

    def slow(chance: random.Random, now: float) -> tuple[float, float]:
        return 10.0, 10.0

    limits = replay(slow, clients=40, slots=40, seconds=4_000.0, decode=0.01)
    lowered = sum(after < before for before, after in pairwise(limits))
    assert lowered <= 6
    assert min(limits) >= 28  # nine tenths of the first 32
    assert limits[-1] >= 40
