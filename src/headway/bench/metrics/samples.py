"""How far the numbers of a run would move on other days, or on other blocks of one day: samples of each number.

Two kinds: over seeds, each of which is a day by itself, and over blocks of one trace, drawn with replacement. Sample n
is of the same seeds or blocks for every policy, so differences between policies are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.paired_draws import DRAWS, Floats, drawn_rows, small_sample_factor, worse
from headway.bench.metrics.request_values import MEASURED, request_values, statistic
from headway.bench.metrics.run_metrics import RunMetrics, Slo
from headway.simulator.outcome import DayOutcome
from headway.simulator.trace import Trace

LEVEL = 0.9
"""Share of days like this one that an interval is to hold."""
_SHARES = frozenset({"goodput", "kv_peak_share", "jain_index", "prefix_hit_share"})  # from 0 to 1, and not by factors


class Interval(NamedTuple):
    """Where a number lies in `LEVEL` of the samples."""

    low: float
    high: float


class Told(NamedTuple):
    """A number as two runs are told apart by it: its estimate, and its value in each sample."""

    estimate: float
    draws: Floats


@dataclass(frozen=True, slots=True)
class Samples:
    """Of each number of a run, by names such as `ttft_seconds.mean`, its value in each of `DRAWS` samples.

    Their spread is widened for the number of seeds or blocks. What has no value in some sample is left out.

    Attributes:
        values: of the numbers themselves.
        told: what runs are told apart by. Of seeds it is the geometric mean of numbers above 0: one heavy day has no
            more to say of which policy is better than any other day.
    """

    values: Mapping[str, Floats]
    told: Mapping[str, Told]

    def interval(self, name: str) -> Interval | None:
        """Where the number lies; None where it is not known."""
        return _interval(self.values.get(name))

    def ratio(self, name: str, baseline: Samples) -> Interval | None:
        """Where its ratio to another run's lies, both taken of the same samples."""
        mine, other = self.values.get(name), baseline.values.get(name)
        return None if mine is None or other is None or (other <= 0).any() else _interval(mine / other)


def over_seeds(runs: Sequence[RunMetrics], mean: RunMetrics, seed: int) -> Samples:
    """Samples of as many seeds as there are, drawn with replacement.

    Args:
        runs: the numbers of each seed.
        mean: of `mean_metrics`, where counts are sums.
        seed: of the draws; the same for all policies.
    """
    drawn = np.random.default_rng(seed).integers(0, len(runs), (DRAWS, len(runs)))
    of_seeds = [dict(_numbers(one.to_json())) for one in runs]
    factor = small_sample_factor(len(runs))
    samples, told = {}, {}
    for name, estimate in _numbers(mean.to_json()):
        values = np.array([one.get(name, np.nan) for one in of_seeds], np.float64)
        if np.isnan(values).any():
            continue
        joined = np.sum if isinstance(estimate, int) else np.mean
        samples[name] = _widened(name, estimate, joined(values[drawn], axis=1), factor)
        told[name] = Told(estimate, samples[name])
        if name not in _SHARES and (values > 0).all():
            middle = float(np.exp(np.log(values).mean()))
            told[name] = Told(middle, _widened(name, middle, np.exp(np.log(values)[drawn].mean(axis=1)), factor))
    return Samples(samples, told)


def over_blocks(
    trace: Trace, outcome: DayOutcome, slo: Slo, unloaded_seconds: Floats | None, *, blocks: int, seed: int
) -> Samples:
    """Samples of as many blocks of time as the trace is cut into, drawn with replacement from anywhere in it.

    Arguments as of `summarise`; the seed is that of the draws, the same for all policies.
    """
    values = request_values(trace, outcome, slo, unloaded_seconds)
    span = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0])
    random = np.random.default_rng(seed)
    numbers = [(key, part) for key in values for part in MEASURED[key]]
    drawn = np.empty((DRAWS, len(numbers)))
    for draw in drawn:  # one at a time: the rows of all would be as many as a long trace 400 times over
        rows = drawn_rows(trace.arrived_seconds, max(span, 1e-9) / blocks, random)
        draw[:] = [statistic(part, values[key][rows]) for key, part in numbers]
    factor = small_sample_factor(blocks)
    told = {}
    for (key, part), column in zip(numbers, drawn.T, strict=True):
        if not np.isnan(column).any():
            name, estimate = f"{key}.{part}" if part else key, statistic(part, values[key])
            told[name] = Told(estimate, _widened(name, estimate, column, factor))
    return Samples({name: one.draws for name, one in told.items()}, told)


def not_worse(told: Sequence[Told], best: int, *, is_high_better: bool = False) -> npt.NDArray[np.bool_]:
    """Which of several runs are not behind one of them by more than chance.

    Distances are ratios where all values are above 0, else differences.

    Args:
        told: of each run, the number that they are compared by.
        best: place of the one that the others are compared with.
        is_high_better: whether more is better.
    """
    estimates, draws = np.array([one.estimate for one in told]), np.array([one.draws for one in told]).T
    if (draws > 0).all() and (estimates > 0).all():
        estimates, draws = np.log(estimates), np.log(draws)
    sign = -1.0 if is_high_better else 1.0
    return ~worse(sign * (estimates - estimates[best]), sign * (draws - draws[:, [best]]))


def nested(intervals: Mapping[str, Interval | None]) -> dict[str, Any]:
    """`{"ttft_seconds": {"mean": {"low": …, "high": …}}, "goodput": {…}}` of those that are known."""
    made: dict[str, Any] = {}
    for name, interval in intervals.items():
        if interval is not None:
            key, _, part = name.partition(".")
            bounds = {"low": interval.low, "high": interval.high}
            if part:
                made.setdefault(key, {})[part] = bounds
            else:
                made[key] = bounds
    return made


def _widened(name: str, estimate: float, drawn: Floats, factor: float) -> Floats:
    """Further from the estimate, by a factor: shares and what can be 0 as numbers, all else as ratios."""
    if name in _SHARES:
        return np.clip(estimate + factor * (drawn - estimate), 0.0, 1.0)
    if estimate > 0 and (drawn > 0).all():
        return np.asarray(estimate * np.exp(factor * np.log(drawn / estimate)))
    return np.maximum(estimate + factor * (drawn - estimate), 0.0)


def _interval(values: Floats | None) -> Interval | None:
    if values is None:
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def _numbers(values: Mapping[str, object], inside: str = "") -> Iterator[tuple[str, float | int]]:
    """Every number of a run that there is, by its name; not how often each reason was given."""
    for name, value in values.items():
        if isinstance(value, Mapping) and not name.endswith("_reasons"):
            yield from _numbers(value, f"{inside}{name}.")
        elif isinstance(value, int | float):
            yield f"{inside}{name}", value
