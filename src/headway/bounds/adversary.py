"""Adversarial search: the instance on which a policy does worst against the optimum, or by another rating.

Three searches take turns, all from one seeded generator: hill climbing from random instances, evolution of a population
by crossing and changing, and restarts from the worst instances found (`climb`). In the discrete model (`search`) an
instance is only solved when the policy's cost over the lower bound says that it could beat the worst one so far.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np

from headway.bounds.discrete import DiscreteRequest, Instance, lower_bound
from headway.bounds.exact_search import least_total_latency

Cost: TypeAlias = Callable[[Instance], int]
"""Total latency of a policy on an instance."""

_POPULATION = 12
_STATES_MOST = 1_500

Kind = TypeVar("Kind", bound=Hashable)
Kind_co = TypeVar("Kind_co", bound=Hashable, covariant=True)


class Rated(Protocol[Kind_co]):
    """An instance of some kind, and how bad it is."""

    @property
    def instance(self) -> Kind_co:
        """What was rated; equal instances are rated equally."""

    @property
    def value(self) -> float:
        """Higher is worse for the policy."""


AnyRated = TypeVar("AnyRated", bound=Rated[Any])


@dataclass(frozen=True, slots=True)
class Moves(Generic[Kind, AnyRated]):
    """Moves among instances of a kind.

    Attributes:
        worse_than: the instance rated, if its value is above the number; None if it is not or cannot be rated.
        change: a neighbour of an instance.
        cross: something of each of two.
    """

    worse_than: Callable[[Kind, float], AnyRated | None]
    change: Callable[[Kind, np.random.Generator], Kind]
    cross: Callable[[Kind, Kind, np.random.Generator], Kind]


@dataclass(frozen=True, slots=True)
class Regime:
    """A class of instances to search among.

    Attributes:
        name: for tables.
        most: requests.
        memory: tokens, all instances the same.
        fits: whether a request belongs to the regime.
        latest: last arrival; 0 for bursts.
    """

    name: str
    most: int
    memory: int
    fits: Callable[[DiscreteRequest, int], bool]
    latest: int = 0


@dataclass(frozen=True, slots=True)
class Ratio:
    """A policy's total latency over the optimum's, on one instance."""

    instance: Instance
    cost: int
    optimum: int

    @property
    def value(self) -> float:
        """cost / optimum."""
        return self.cost / self.optimum


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Result of a search.

    Attributes:
        worst: the instance with the largest ratio.
        mean: of the ratios on random instances, drawn before any search.
        drawn: how many these were.
        tried: instances looked at in all.
        solved: of these, how many had to be solved exactly.
    """

    worst: Ratio
    mean: float
    drawn: int
    tried: int
    solved: int


def search(cost: Cost, regime: Regime, rng: np.random.Generator, *, draws: int, steps: int) -> SearchResult:
    """Search for the worst ratio of `cost` to the optimum in `regime`.

    Args:
        cost: of the policy; raises ValueError where it does not take an instance, which is then passed over.
        regime: where to look.
        rng: all chance.
        draws: random instances that are solved exactly, for the mean and to start from.
        steps: changed instances that are tried after that.
    """
    evaluator = _Evaluator(cost)
    population = [ratio for _ in range(draws) if (ratio := evaluator.exact(draw(regime, rng))) is not None]
    if not population:
        raise ValueError(f"no instance of regime {regime.name!r} could be solved")
    mean = float(np.mean([ratio.value for ratio in population]))
    drawn = len(population)
    moves = Moves(
        evaluator.worse_than,
        lambda instance, chance: change(instance, regime, chance),
        lambda one, other, chance: cross(one, other, regime, chance),
    )
    worst = climb(population, moves, rng, steps=steps)
    return SearchResult(worst, mean, drawn, evaluator.tried, evaluator.solved)


def climb(
    population: Sequence[AnyRated], moves: Moves[Kind, AnyRated], rng: np.random.Generator, *, steps: int
) -> AnyRated:
    """Worst instance after `steps` steps of climbing and of evolution in turn, from a population.

    Raises:
        ValueError: the population is empty.
    """
    if not population:
        raise ValueError("there is nothing to start from: draw more instances")
    population = _fittest(population)
    climber = population[0]
    for step in range(steps):
        if step % 2:
            one, other = (population[int(rng.integers(len(population)))].instance for _ in range(2))
            child = moves.change(moves.cross(one, other, rng), rng)
            born = moves.worse_than(child, population[-1].value)
            if born is not None:
                population = _fittest([*population, born])
        else:
            higher = moves.worse_than(moves.change(climber.instance, rng), climber.value)
            climber = climber if higher is None else higher
            if step % 200 == 0:  # on a hilltop it is time to climb elsewhere
                population = _fittest([*population, climber])
                climber = population[int(rng.integers(len(population)))]
    return _fittest([*population, climber])[0]


def draw(regime: Regime, rng: np.random.Generator) -> Instance:
    """A random instance of the regime."""
    count = int(rng.integers(2, regime.most + 1))
    return Instance(tuple(_draw_request(regime, rng) for _ in range(count)), regime.memory)


def change(instance: Instance, regime: Regime, rng: np.random.Generator) -> Instance:
    """A neighbour: a request more, less, doubled, drawn again or with one number changed."""
    requests = list(instance.requests)
    place = int(rng.integers(len(requests)))
    kind = int(rng.integers(6))
    if kind == 0 and len(requests) < regime.most:
        requests.append(_draw_request(regime, rng))
    elif kind == 1 and len(requests) > 2:
        del requests[place]
    elif kind == 2 and len(requests) < regime.most:
        requests.append(requests[place])
    elif kind == 3:
        requests[place] = _draw_request(regime, rng)
    else:
        moved = _nudged(requests[place], regime, rng)
        requests[place] = moved if _belongs(moved, regime) else requests[place]
    return Instance(tuple(requests), regime.memory)


def cross(one: Instance, other: Instance, regime: Regime, rng: np.random.Generator) -> Instance:
    """Some requests of each."""
    pool = [*one.requests, *other.requests]
    count = min(regime.most, max(2, int(rng.integers(2, len(pool) + 1))))
    return Instance(tuple(pool[int(i)] for i in rng.choice(len(pool), count, replace=False)), regime.memory)


class _Evaluator:
    """Rates instances by exact optima, and counts how many it looked at and solved."""

    def __init__(self, cost: Cost) -> None:
        self._cost = cost
        self._known: dict[Instance, Ratio | None] = {}
        self.tried = 0
        self.solved = 0

    def worse_than(self, instance: Instance, ratio: float) -> Ratio | None:
        """The instance's ratio if it is above `ratio`; None if it is not or cannot be solved."""
        self.tried += 1
        try:
            if self._cost(instance) <= ratio * lower_bound(instance):
                return None
        except ValueError:
            return None
        exact = self.exact(instance, count=False)
        return exact if exact is not None and exact.value > ratio else None

    def exact(self, instance: Instance, *, count: bool = True) -> Ratio | None:
        """The instance's ratio; None if the policy does not take it or it is too large to be solved quickly."""
        self.tried += count
        if instance not in self._known:
            self._known[instance] = self._solve(instance)
        return self._known[instance]

    def _solve(self, instance: Instance) -> Ratio | None:
        try:
            cost = self._cost(instance)
        except ValueError:
            return None
        self.solved += 1
        best = least_total_latency(instance, states_most=_STATES_MOST)
        return None if best is None else Ratio(instance, cost, best)


def _fittest(population: Sequence[AnyRated]) -> list[AnyRated]:
    """The worst different instances, worst first."""
    different = {rated.instance: rated for rated in population}
    return sorted(different.values(), key=lambda rated: -rated.value)[:_POPULATION]


def _belongs(request: DiscreteRequest, regime: Regime) -> bool:
    sound = request.prompt >= 1 and request.output >= 1 and 0 <= request.arrived <= regime.latest
    return sound and request.peak <= regime.memory and regime.fits(request, regime.memory)


def _draw_request(regime: Regime, rng: np.random.Generator) -> DiscreteRequest:
    """Sizes about evenly over magnitudes, so that small and large ones meet."""
    while True:
        prompt, output = (int(np.exp(rng.uniform(0, np.log(regime.memory)))) for _ in range(2))
        request = DiscreteRequest(prompt, output, int(rng.integers(regime.latest + 1)))
        if _belongs(request, regime):
            return request


def _nudged(request: DiscreteRequest, regime: Regime, rng: np.random.Generator) -> DiscreteRequest:
    by = int(rng.choice([-3, -1, 1, 3]))
    match int(rng.integers(3 if regime.latest else 2)):
        case 0:
            return request._replace(prompt=request.prompt + by)
        case 1:
            return request._replace(output=request.output + by)
        case _:
            return request._replace(arrived=request.arrived + by)
