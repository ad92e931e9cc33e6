"""Scheduling policies of the literature in the discrete model, each in its published form, as yardsticks.

All but A_min know output lengths; 1-bit SVF knows one bit of each. Where a paper's text leaves a rule open, our
reading is marked unverified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import TypeAlias

from headway.bounds.discrete import Active, Choice, DiscreteRequest, Instance, peak_of

Check: TypeAlias = Callable[[Instance, Sequence[Active], DiscreteRequest], bool]


def forward_check(instance: Instance, active: Sequence[Active], candidate: DiscreteRequest) -> bool:
    """Whether no future step would exceed memory (arXiv 2606.22327, the check of Theorem 3.2)."""
    running = [(request.held, instance.requests[request.place].output - request.produced) for request in active]
    return peak_of([*running, (candidate.prompt, candidate.output)]) <= instance.memory


def peak_sum_check(instance: Instance, active: Sequence[Active], candidate: DiscreteRequest) -> bool:
    """Whether all peaks together fit (arXiv 2607.09248, Theorem 4); never admits what the forward check refuses."""
    return sum(instance.requests[request.place].peak for request in active) + candidate.peak <= instance.memory


def current_check(instance: Instance, active: Sequence[Active], candidate: DiscreteRequest) -> bool:
    """Whether the next step fits (arXiv 2606.22327, Algorithm 1 as deployed; no bound covers it)."""
    return sum(request.held + 1 for request in active) + candidate.prompt + 1 <= instance.memory


class InOrder:
    """Start the head of the queue while the check lets it in; the first that does not fit blocks those behind it.

    With the current-capacity check memory can run out later; the latest started gives way then, as in vLLM (the paper
    leaves that to the engine).

    Args:
        instance: whose true lengths the order and the check read.
        keys: by place; lower goes first, ties by place.
        check: of admission.
        skips: whether those behind a head that does not fit may pass it (an ablation, no paper's proof covers it).
    """

    def __init__(
        self, instance: Instance, keys: Sequence[float], check: Check = forward_check, *, skips: bool = False
    ) -> None:
        self._instance = instance
        self._keys = keys
        self._check = check
        self._skips = skips

    def choose(self, waiting: Sequence[int], active: Sequence[Active]) -> Choice:
        """Kill the latest started while memory is short, else start the queue in order while the check lets it in."""
        requests, staying = self._instance.requests, list(active)
        kill: list[int] = []
        while sum(request.held + 1 for request in staying) > self._instance.memory:
            kill.append(staying.pop().place)
        start: list[int] = []
        if kill:
            return Choice(kill)
        for place in sorted(waiting, key=lambda place: (self._keys[place], place)):
            if self._check(self._instance, staying, requests[place]):
                start.append(place)
                staying.append(Active(place, requests[place].prompt, 0))
            elif not self._skips:
                break
        return Choice((), start)


def svf(instance: Instance, check: Check = forward_check) -> InOrder:
    """Smallest volume first (arXiv 2606.22327)."""
    return InOrder(instance, [request.volume for request in instance.requests], check)


def svf_one_bit(instance: Instance, total_tokens: int | None = None) -> InOrder:
    """1-bit SVF, the worst-case setting of arXiv 2606.22327, Theorem 3.3: s + o ≤ T, θ = √T, O_0 = T^¼, O_1 = T^¾.

    Ordered by the volume that the class's proxy length would give. That its admission check reads true lengths is our
    reading of the proof (unverified).

    Args:
        instance: the requests.
        total_tokens: T; the largest peak of the instance unless given.
    """
    bound = total_tokens or max(request.peak for request in instance.requests)

    def proxy(request: DiscreteRequest) -> float:
        length: float = bound ** (0.25 if request.output <= bound**0.5 else 0.75)
        return request.prompt * length + (length * length + length) / 2

    return InOrder(instance, [proxy(request) for request in instance.requests])


def mc_sf(instance: Instance, *, skips: bool = False) -> InOrder:
    """MC-SF (arXiv 2502.07115): shortest output first while future memory allows.

    That it stops at the first infeasible request is unverified; `skips` is the other reading.
    """
    return InOrder(instance, [request.output for request in instance.requests], skips=skips)


def fcfs_peak(instance: Instance) -> InOrder:
    """Order of arrival under the forward check; the "MC-Benchmark" of arXiv 2502.07115 (the name is unverified)."""
    return InOrder(instance, [request.arrived for request in instance.requests])


def sorted_f(instance: Instance) -> InOrder:
    """Sorted-F (arXiv 2508.06133), exact: take again and again the set X of those left with the least Σ o / |X|².

    X must fit in memory when all of it starts together. Sets are found by trying all of them, so n ≤ 12. Requests are
    then started in the order of the sets, inside a set by output, while the forward check allows (both unverified).

    Raises:
        ValueError: more than 12 requests, or not all there from the start (the policy is offline).
    """
    requests = instance.requests
    if len(requests) > 12:
        raise ValueError(f"Sorted-F tries all sets and takes at most 12 requests, got {len(requests)}")
    if any(request.arrived for request in requests):
        raise ValueError("Sorted-F is an offline policy: all requests have to be there at step 0")
    left = sorted(range(len(requests)), key=lambda place: (requests[place].output, place))
    order: list[int] = []
    while left:
        best: tuple[float, tuple[int, ...]] | None = None
        for size in range(1, len(left) + 1):
            for chosen in combinations(left, size):  # by rising output, so the first that fits is this size's least
                value = sum(requests[place].output for place in chosen) / size**2
                if best is not None and value >= best[0]:
                    continue
                if peak_of((requests[p].prompt, requests[p].output) for p in chosen) <= instance.memory:
                    best = (value, chosen)
        assert best is not None, "each request fits by itself"
        order += best[1]
        left = [place for place in left if place not in best[1]]
    return InOrder(instance, [order.index(place) for place in range(len(requests))])


def a_max(instance: Instance, longest: int | None = None) -> InOrder:
    """A_max (arXiv 2508.14544): schedule as if every output had the largest length there is; it never overflows.

    Args:
        instance: the requests.
        longest: upper end u of the interval that outputs lie in; the largest output unless given.
    """
    upper = longest or max(request.output for request in instance.requests)

    def check(instance: Instance, active: Sequence[Active], candidate: DiscreteRequest) -> bool:
        running = [(request.held, upper - request.produced) for request in active]
        alone = not running  # one that only fits with its true length runs by itself
        return alone or peak_of([*running, (candidate.prompt, upper)]) <= instance.memory

    return InOrder(instance, [request.prompt for request in instance.requests], check)


class AMin:
    """A_min (arXiv 2508.14544): take every output to be as short as possible, and learn by running. Knows no length.

    Shortest estimate first, feasibility on estimates; a running request's estimate is at least what it has produced
    and one more. On overflow the one with the smallest estimate is killed, ties by newest start, and what it had made
    is its new estimate, never below what it made before (this rule is unverified).

    Args:
        instance: prompts are read, outputs are not.
        shortest: lower end l of the interval that outputs lie in.
    """

    def __init__(self, instance: Instance, shortest: int = 1) -> None:
        self._prompts = [request.prompt for request in instance.requests]
        self._memory = instance.memory
        self._learnt = [shortest] * len(instance.requests)

    def choose(self, waiting: Sequence[int], active: Sequence[Active]) -> Choice:
        """Kill the smallest estimates while memory is short; start the shortest estimates that fit beside the rest."""
        staying = list(active)
        estimates = list(self._learnt)
        for request in staying:
            estimates[request.place] = max(estimates[request.place], request.produced + 1)
        kill: list[int] = []
        while sum(request.held + 1 for request in staying) > self._memory:
            number = min(range(len(staying)), key=lambda n: (estimates[staying[n].place], -n))
            victim = staying.pop(number)
            self._learnt[victim.place] = max(self._learnt[victim.place], victim.produced)
            kill.append(victim.place)
        start: list[int] = []
        for place in sorted(waiting, key=lambda place: (estimates[place], place)):
            joined = [*staying, Active(place, self._prompts[place], 0)]
            if staying and peak_of((r.held, estimates[r.place] - r.produced) for r in joined) > self._memory:
                break
            staying = joined
            start.append(place)
        return Choice(kill, start)
