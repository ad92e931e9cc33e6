"""Policies without any prediction: caps that double, kills and restarts (arXiv 2607.09248).

Requests are of three regimes, Λ being a quarter of the memory: large (s > Λ), prompt-heavy (s ≤ Λ, o ≤ s) and
response-heavy (s ≤ Λ, o > s). `rect` serves one of the first two, `response` the third; `route` serves any mixture
without knowing which request is what. Guarantees on the total completion time of a burst, all from the paper: 36 for
`rect` in each of its regimes, 236/3 for `response`, 996 for `route`.

Prompts are known, outputs show only when an attempt ends. Each function returns the attempts; `discrete.replay` checks
them.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from math import gcd

from headway.bounds.discrete import Attempt, Instance

_FOREVER = 1 << 60


def rect(instance: Instance) -> list[Attempt]:
    """Rect on a burst of one regime: large requests one at a time, prompt-heavy ones within widths of twice the prompt.

    Raises:
        ValueError: a request is response-heavy, or both other regimes are there; or not all requests are there at 0.
    """
    _check_burst(instance)
    large = [request.prompt > instance.memory / 4 for request in instance.requests]
    if any(large) and not all(large):
        raise ValueError("Rect serves one regime: all prompts above a quarter of the memory, or none")
    if not all(large) and any(request.output > request.prompt for request in instance.requests):
        raise ValueError("Rect does not serve response-heavy requests, whose output is longer than their prompt")
    return _rect(instance, range(len(instance.requests)), 0, _FOREVER, caps={})


def response(instance: Instance) -> list[Attempt]:
    """Response on a burst of prompts that are at most a quarter of the memory.

    Raises:
        ValueError: a prompt is larger, or not all requests are there at 0.
    """
    _check_burst(instance)
    if any(request.prompt > instance.memory / 4 for request in instance.requests):
        raise ValueError("Response serves prompts of at most a quarter of the memory")
    return _response(instance, range(len(instance.requests)), 0, _FOREVER)


def route(instance: Instance) -> list[Attempt]:
    """Route, on any instance: the three regimes take turns of doubling length, each from the start.

    A request that makes as many tokens as its prompt has and is not done is response-heavy from then on. Requests that
    arrive later join at the next stage.
    """
    requests = instance.requests
    unfinished = set(range(len(requests)))
    response_heavy: set[int] = set()
    attempts: list[Attempt] = []
    now = min((request.arrived for request in requests), default=0)
    stage = 0
    while unfinished:
        here = {place for place in unfinished if requests[place].arrived <= now}
        large = {place for place in here if requests[place].prompt > instance.memory / 4}
        span = 1 << stage
        small = here - large - response_heavy
        # A prompt of 0 tokens is no prompt-heavy request's: its first token tells.
        caps = {place: max(1, requests[place].prompt) for place in small}
        turn = _rect(instance, small, now, now + span, caps=caps)
        unfinished -= _ended(instance, turn)
        response_heavy |= {place for place, _, steps in turn if steps >= caps[place]} & unfinished
        attempts += turn
        now += span
        turn = _response(instance, response_heavy, now, now + span)
        unfinished -= _ended(instance, turn)
        response_heavy &= unfinished
        attempts += turn
        now += span
        turn = _rect(instance, large, now, now + span, caps={})
        unfinished -= _ended(instance, turn)
        attempts += turn
        now += span
        stage += 1
    return attempts


def peak_of_staggered(count: int, cap: int, prompt: int) -> int:
    """Most memory of `count` requests started evenly over `cap` steps, each running `cap` steps, for ever on.

    s·k + (τ·k + τ + k − gcd(τ, k)) / 2 (arXiv 2607.09248, shifted-parallel schedule).
    """
    return prompt * count + (cap * count + cap + count - gcd(cap, count)) // 2


def staggered_most(memory: int, cap: int, prompt: int) -> int:
    """Most requests that can be staggered so within `memory`; at least 1 where one alone fits."""
    count = max(1, (2 * memory - cap + 1) // (2 * prompt + cap + 1))  # the paper's lower bound on it
    while peak_of_staggered(count + 1, cap, prompt) <= memory:
        count += 1
    return count


def _ended(instance: Instance, attempts: Iterable[Attempt]) -> set[int]:
    """Places of the requests that made all their tokens."""
    return {place for place, _, steps in attempts if steps == instance.requests[place].output}


def _check_burst(instance: Instance) -> None:
    if any(request.arrived for request in instance.requests):
        raise ValueError("this policy's form is for a burst: all requests have to be there at step 0")


def _rect(
    instance: Instance, places: Iterable[int], begins: int, ends: int, *, caps: Mapping[int, int]
) -> list[Attempt]:
    """Attempts in order of width · 2^r, started while their widths fit; cut off at `ends`.

    Args:
        instance: the requests.
        places: the requests to serve.
        begins, ends: when.
        caps: most tokens of a request here; a request that reaches its cap unfinished is not tried again.
    """
    requests, memory = instance.requests, instance.memory
    widths = {p: memory if requests[p].prompt > memory / 4 else 2 * max(1, requests[p].prompt) for p in places}
    pending = [(width, place, 0) for place, width in widths.items()]  # budget, place, r
    heapq.heapify(pending)
    running: list[tuple[int, int, int, int]] = []  # end, place, r, start
    attempts: list[Attempt] = []
    now, free = begins, memory
    while (pending or running) and now < ends:
        while pending and widths[pending[0][1]] <= free:
            _, place, doubled = heapq.heappop(pending)
            steps = min(1 << doubled, requests[place].output, caps.get(place, _FOREVER))
            free -= widths[place]
            heapq.heappush(running, (now + steps, place, doubled, now))
        now = running[0][0]
        while running and running[0][0] == now and now <= ends:
            _, place, doubled, started = heapq.heappop(running)
            steps = now - started
            free += widths[place]
            attempts.append(Attempt(place, started, steps))
            if steps < requests[place].output and steps < caps.get(place, _FOREVER):
                heapq.heappush(pending, (widths[place] << (doubled + 1), place, doubled + 1))
    attempts += [Attempt(place, started, ends - started) for _, place, _, started in running if started < ends]
    return attempts


def _response(instance: Instance, places: Iterable[int], begins: int, ends: int) -> list[Attempt]:
    """Phases with caps τ = 1, 2, 4, … up to the memory; cut off at `ends`."""
    requests, memory = instance.requests, instance.memory
    unfinished = sorted(places)
    attempts: list[Attempt] = []
    phase, now = 0, begins
    while unfinished and now < ends:
        cap = min(1 << phase, memory)
        phase += 1
        eligible = [place for place in unfinished if requests[place].prompt <= cap]
        if not eligible:
            continue
        count = staggered_most(memory, cap, min(cap, memory - cap))
        last = now
        for number, place in enumerate(eligible):
            started = now + number * cap // count
            steps = min(cap, requests[place].output, ends - started)
            if steps <= 0:
                break
            last = started + cap
            attempts.append(Attempt(place, started, steps))
            if steps == requests[place].output:
                unfinished.remove(place)
        now = last
    return attempts
