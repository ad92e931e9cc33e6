"""How far a simulated day is from the measured one, per request and in the figures that people quote."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from headway.bench.metrics.recording import Recording, Seconds, seconds_per_token, tokens_per_second
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.step_time import SECONDS_PER_PS
from headway.simulator.trace import Trace

_TITLES = {"ttft": "TTFT", "tpot": "TPOT", "e2e": "end to end", "throughput": "output tokens/s"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, measured and predicted, in the same unit."""

    measured: float
    predicted: float

    @property
    def error(self) -> float:
        """(predicted - measured) / measured; NaN where nothing was measured."""
        return self.predicted / self.measured - 1 if self.measured else float("nan")


@dataclass(frozen=True, slots=True)
class Agreement:
    """Predicted against measured over the requests that both have.

    Attributes:
        requests: how many both have.
        figures: `ttft mean`, `ttft p99`, `tpot mean`, `tpot p99`, `e2e mean`, `e2e p99` in seconds and `throughput`
            in output tokens a second.
        e2e_mape: mean over the requests of |predicted - measured| / measured, end to end.
        preemptions: predicted.
    """

    requests: int
    figures: Mapping[str, Figure]
    e2e_mape: float
    preemptions: int

    def to_json(self) -> dict[str, object]:
        """The object `recorded` of a run, as docs/json.md describes it."""
        keys = ("measured", "simulated", "error_percent")
        figures = {
            name: dict(zip(keys, map(_number, (figure.measured, figure.predicted, 100 * figure.error)), strict=True))
            for name, figure in self.figures.items()
        }
        return {
            "requests": self.requests,
            **{f"{name.replace(' ', '_')}": both for name, both in figures.items()},
            "e2e_mean_absolute_percentage_error": 100 * self.e2e_mape,
        }

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """(figure and its unit, measured, simulated, error) of each, as tables and reports print them."""
        for name, figure in self.figures.items():
            kind, _, part = name.partition(" ")
            title = f"{_TITLES[kind]} {part}, s" if part else _TITLES[kind]
            yield title, _shown(figure.measured), _shown(figure.predicted), percent(figure.error)

    def sentence(self) -> str:
        """The errors in one line, as tables and reports print it."""
        named = (("mean TTFT", "ttft mean"), ("TPOT", "tpot mean"), ("end to end", "e2e mean"), ("p99", "e2e p99"))
        parts = [f"{label} {percent(self.figures[name].error)}" for label, name in named]
        return f"{', '.join(parts)}; per request {100 * self.e2e_mape:.1f} % ({self.requests:,} requests)"


def times_of(outcome: DayOutcome) -> tuple[Seconds, Seconds]:
    """(TTFT, end to end) seconds of every row, NaN where it did not happen."""
    first, last = (
        np.where(until == NEVER, np.nan, (until - outcome.arrived_ps) * SECONDS_PER_PS)
        for until in (outcome.first_token_ps, outcome.ended_ps)
    )
    return first, last


def in_both(recording: Recording, e2e: Seconds) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which requests were measured (with a latency above 0) and simulated to their ends."""
    return (recording.e2e_seconds > 0) & np.isfinite(e2e)


def agreement(recording: Recording, ttft: Seconds, e2e: Seconds, preemptions: int = 0) -> Agreement:
    """Put simulated times (as `times_of`) beside the measured ones.

    Raises:
        ValueError: no request has both.
    """
    both = in_both(recording, e2e)
    if not both.any():
        raise ValueError(f"{recording.label}: no request was both measured and simulated to its end")
    figures = {}
    trace = recording.trace
    tpot = seconds_per_token(trace, ttft, e2e)
    for name, measured, predicted in (
        ("ttft", recording.ttft_seconds, ttft),
        ("tpot", recording.tpot_seconds, tpot),
        ("e2e", recording.e2e_seconds, e2e),
    ):
        known = both & np.isfinite(measured) & np.isfinite(predicted)
        real, simulated = measured[known], predicted[known]
        means = (float(real.mean()), float(simulated.mean())) if known.any() else (float("nan"), float("nan"))
        tails = [float(np.percentile(v, 99)) if known.any() else float("nan") for v in (real, simulated)]
        figures[f"{name} mean"], figures[f"{name} p99"] = Figure(*means), Figure(*tails)
    figures["throughput"] = Figure(_throughput(trace, recording.e2e_seconds, both), _throughput(trace, e2e, both))
    mape = float(np.mean(np.abs(e2e[both] / recording.e2e_seconds[both] - 1)))
    return Agreement(int(both.sum()), figures, mape, preemptions)


def percent(share: float) -> str:
    """`+4.1 %`; a dash where there is nothing."""
    return f"{100 * share:+.1f} %" if math.isfinite(share) else "–"


def _throughput(trace: Trace, e2e: Seconds, rows: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    return tokens_per_second(trace, np.where(rows, e2e, np.nan))


def _shown(value: float) -> str:
    """Three digits; a dash where there is nothing."""
    if not math.isfinite(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
