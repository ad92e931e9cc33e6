"""Calibration of a length predictor: its estimates at arrival against the true lengths, over one run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headway.domain.event import Arrived, Completed, Event
from headway.domain.request import RequestId

INTERVALS: Mapping[str, tuple[float, float]] = {"50": (0.25, 0.75), "90": (0.05, 0.95), "99": (0.005, 0.995)}
"""The central intervals that are checked: percent, and the two quantiles that bound each."""
PINBALL_LEVELS: Mapping[str, float] = {"50": 0.5, "90": 0.9, "99": 0.99}
_CRPS_LEVELS = tuple((2 * step + 1) / 40 for step in range(20))
_SAMPLE = 2_000


@dataclass(frozen=True, slots=True)
class PredictionCalibration:
    """One predictor over one run. Field names are the keys of the JSON.

    Attributes:
        made_by: the predictor, as its first estimate names it.
        completions: how many requests the numbers are over: completed ones, every n-th of a long trace.
        coverage: share of output lengths inside the central 50, 90 and 99 % interval; calibrated: 0.5, 0.9, 0.99.
        pinball_loss_tokens: mean pinball loss of the 50, 90 and 99 % quantile.
        crps_tokens: mean continuous ranked probability score: twice the pinball loss, averaged over 20 even quantiles
            (Gneiting and Raftery, 2007). For a point it is the mean absolute error.
        bias_tokens: mean of (expected − true).
        output_tokens: mean true length, to measure the others by.
    """

    made_by: str
    completions: int
    coverage: Mapping[str, float]
    pinball_loss_tokens: Mapping[str, float]
    crps_tokens: float
    bias_tokens: float
    output_tokens: float

    def to_json(self) -> dict[str, object]:
        """The fields by name."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class _Forecast:
    """One estimate at arrival: its mean and the quantiles that are checked, in tokens."""

    mean: float
    bounds: dict[str, tuple[int, int]]
    pinball: dict[str, int]
    crps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How good one estimate was: inside each interval or not, and its losses in tokens."""

    arrived_at: float
    inside: Mapping[str, bool]
    pinball: Mapping[str, float]
    crps: float
    error: float
    output_tokens: int


class CalibrationListener:
    """Listens to a run: notes each estimate at arrival and judges it at completion."""

    def __init__(self, requests: int, sample: int = _SAMPLE) -> None:
        """`requests`: how many the run will have; at most about `sample` of them are judged, evenly chosen."""
        self._every = max(1, -(-requests // sample))
        self._arrivals = 0
        self._made_by = ""
        self._forecasts: dict[RequestId, _Forecast] = {}
        self.verdicts: list[Verdict] = []

    def observe(self, event: Event) -> None:
        """Note the estimate of an arrival, or judge the one of a completed request."""
        if isinstance(event, Arrived):
            if self._arrivals % self._every == 0:
                self._note(event)
            self._arrivals += 1
        elif isinstance(event, Completed):
            forecast = self._forecasts.pop(event.request.id, None)
            if forecast is not None:
                self.verdicts.append(_judge(forecast, event.output_tokens, event.request.arrived_at))

    def result(self) -> PredictionCalibration | None:
        """The numbers so far; None before the first completion."""
        return summary(self._made_by, self.verdicts)

    def _note(self, event: Arrived) -> None:
        estimate = event.request.estimate
        if estimate is None:
            return
        self._made_by = self._made_by or estimate.made_by

        def quantile(probability: float) -> int:
            return estimate.remaining_quantile(probability, 0)

        self._forecasts[event.request.id] = _Forecast(
            estimate.remaining_mean(0),
            {name: (quantile(low), quantile(high)) for name, (low, high) in INTERVALS.items()},
            {name: quantile(level) for name, level in PINBALL_LEVELS.items()},
            tuple(quantile(level) for level in _CRPS_LEVELS),
        )


def summary(made_by: str, verdicts: list[Verdict]) -> PredictionCalibration | None:
    """Means over some verdicts; None without any."""
    count = len(verdicts)
    if count == 0:
        return None
    return PredictionCalibration(
        made_by=made_by,
        completions=count,
        coverage={name: sum(verdict.inside[name] for verdict in verdicts) / count for name in INTERVALS},
        pinball_loss_tokens={
            name: sum(verdict.pinball[name] for verdict in verdicts) / count for name in PINBALL_LEVELS
        },
        crps_tokens=sum(verdict.crps for verdict in verdicts) / count,
        bias_tokens=sum(verdict.error for verdict in verdicts) / count,
        output_tokens=sum(verdict.output_tokens for verdict in verdicts) / count,
    )


def _judge(forecast: _Forecast, output_tokens: int, arrived_at: float) -> Verdict:
    losses = [
        _pinball(level, quantile, output_tokens) for level, quantile in zip(_CRPS_LEVELS, forecast.crps, strict=True)
    ]
    return Verdict(
        arrived_at=arrived_at,
        inside={name: low <= output_tokens <= high for name, (low, high) in forecast.bounds.items()},
        pinball={name: _pinball(PINBALL_LEVELS[name], q, output_tokens) for name, q in forecast.pinball.items()},
        crps=2 * sum(losses) / len(losses),
        error=forecast.mean - output_tokens,
        output_tokens=output_tokens,
    )


def _pinball(level: float, quantile: int, output_tokens: int) -> float:
    short = output_tokens - quantile
    return level * short if short >= 0 else (level - 1) * short
