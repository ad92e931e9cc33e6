"""Built-in workloads and the parts to draw one: named random streams, quantile curves, renewal arrivals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Seconds, Tokens, Trace

Curve: TypeAlias = Mapping[int, float] | Mapping[float, float]
"""Percent -> value: a distribution by its quantiles, from 0 (the least) to 100 (the greatest), values above 0."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of traffic, generated from published statistics.

    Attributes:
        name: what the user types.
        summary: what it is for, in one line.
        source: the published figures that it is built from.
        make: draws that many requests from a seed.
    """

    name: str
    summary: str
    source: str
    make: Callable[[int, int], Trace]

    def generate(self, requests: int, seed: int) -> Trace:
        """`requests` requests; the same seed gives the same trace, bit for bit.

        Raises:
            UserMistake: fewer than one request, or a negative seed.
        """
        if requests < 1:
            raise UserMistake(f"--requests: {requests} is too few; a workload needs at least 1 request")
        if seed < 0:
            raise UserMistake(f"--seed: {seed} is negative; give a whole number from 0")
        return self.make(requests, seed)


def stream(seed: int, *names: str) -> np.random.Generator:
    """The random stream of this name under this seed; streams of different names are independent."""
    key = hashlib.sha256("/".join(names).encode()).digest()[:16]
    return np.random.default_rng(np.random.SeedSequence(entropy=seed, spawn_key=tuple(np.frombuffer(key, np.uint32))))


def draw_from_quantiles(rng: np.random.Generator, curve: Curve, count: int) -> npt.NDArray[np.float64]:
    """Draws from the distribution with these quantiles: log-linear between them, so a heavy tail stays heavy.

    Args:
        rng: the random stream.
        curve: the quantiles.
        count: how many.
    """
    percents, values = np.array(sorted(curve.items()), dtype=np.float64).T
    drawn: npt.NDArray[np.float64] = np.exp(np.interp(rng.random(count) * 100, percents, np.log(values)))
    return drawn


def whole_tokens(values: npt.NDArray[np.float64]) -> Tokens:
    """Rounded to whole tokens, at least 1."""
    return np.maximum(np.rint(values), 1).astype(np.int64)


def draw_arrivals(
    rng: np.random.Generator, rate: float, cv: float, count: int, family: Literal["gamma", "weibull"] = "gamma"
) -> Seconds:
    """Arrival times of a renewal process, the first after one gap.

    Args:
        rng: the random stream.
        rate: requests a second.
        cv: coefficient of variation of the gaps; 1 is Poisson.
        count: how many.
        family: the gaps' distribution; both are Poisson at cv 1.
    """
    if family == "gamma":
        shape = 1 / cv**2
        gaps = rng.gamma(shape, 1 / (rate * shape), count)
    else:
        shape = _weibull_shape(cv)
        gaps = rng.weibull(shape, count) / (rate * math.gamma(1 + 1 / shape))
    return np.cumsum(gaps)


def from_zero(arrived: Seconds) -> Seconds:
    """Times since the first, in whole milliseconds, as a trace file keeps them."""
    times: Seconds = np.rint((arrived - arrived[0]) * 1000) / 1000
    return times


def _weibull_shape(cv: float) -> float:
    """The shape whose coefficient of variation is `cv`, by bisection, as it falls with the shape."""
    low, high = 0.15, 50.0
    for _ in range(80):
        middle = (low + high) / 2
        if math.gamma(1 + 2 / middle) / math.gamma(1 + 1 / middle) ** 2 - 1 > cv**2:
            low = middle
        else:
            high = middle
    return (low + high) / 2
