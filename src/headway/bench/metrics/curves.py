"""Curves of one run for a report: TTFT distributions and timelines, thinned to what an eye can see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.run_metrics import Mask, length_classes
from headway.simulator.outcome import NEVER, DayOutcome, LoadPoints
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

Points: TypeAlias = tuple[float, ...]

CDF_POINTS = 200
TIMELINE_POINTS = 400


@dataclass(frozen=True, slots=True)
class Cdf:
    """TTFT of one length class: `shares[i]` of its OFFERED requests had a first token within `seconds[i]`.

    The last share is below 1 when some requests never got one. Both are empty when none did.
    """

    name: str
    prompts: str  # which prompts, in words
    requests: int
    seconds: Points
    shares: Points


@dataclass(frozen=True, slots=True)
class Curves:
    """What to draw of one run.

    The timeline cuts the makespan into equal spans; each value is the time-weighted mean over one span, placed at the
    span's middle. All four are empty when the engine kept no curve.
    """

    ttft: tuple[Cdf, ...]
    seconds: Points
    waiting: Points
    running: Points
    kv_share: Points


@dataclass(frozen=True, slots=True)
class Timeline:
    """Load of one replica of a fleet over the day, as in `Curves`."""

    seconds: Points
    waiting: Points
    running: Points


def timeline(load: LoadPoints, makespan_ps: int) -> Timeline:
    """Thin one replica's day to at most `TIMELINE_POINTS` points, as many seconds as the fleet's day has."""
    if not load.at_ps or makespan_ps <= 0:
        return Timeline((), (), ())
    edges = np.linspace(0, makespan_ps, TIMELINE_POINTS + 1)
    return Timeline(
        seconds=tuple(((edges[1:] + edges[:-1]) / 2 / PS_PER_SECOND).tolist()),
        waiting=_span_means(load.at_ps, makespan_ps, load.waiting, edges),
        running=_span_means(load.at_ps, makespan_ps, load.running, edges),
    )


def curves(trace: Trace, outcome: DayOutcome, *, kv_blocks: int) -> Curves:
    """Thin one day to at most `CDF_POINTS` points a length class and `TIMELINE_POINTS` points a timeline."""
    shorter, longest = length_classes(trace)
    longest = longest & ~shorter
    median, p95 = np.percentile(trace.prompt_tokens, [50, 95]) if len(trace) else (0.0, 0.0)
    classes = (
        ("shorter half", f"prompts of at most {median:,.0f} tokens", shorter),
        ("middle", f"prompts of {median:,.0f} to {p95:,.0f} tokens", ~shorter & ~longest),
        ("longest 5 %", f"prompts of at least {p95:,.0f} tokens", longest),
    )
    edges = np.linspace(0, outcome.makespan_ps, TIMELINE_POINTS + 1)
    drawn = len(outcome.curve_ps) > 0 and outcome.makespan_ps > 0
    return Curves(
        ttft=tuple(_cdf(name, prompts, mask, outcome) for name, prompts, mask in classes),
        seconds=tuple(((edges[1:] + edges[:-1]) / 2 / PS_PER_SECOND).tolist()) if drawn else (),
        waiting=_span_means(outcome.curve_ps, outcome.makespan_ps, outcome.curve_waiting, edges) if drawn else (),
        running=_span_means(outcome.curve_ps, outcome.makespan_ps, outcome.curve_running, edges) if drawn else (),
        kv_share=_span_means(outcome.curve_ps, outcome.makespan_ps, outcome.curve_blocks, edges, kv_blocks)
        if drawn
        else (),
    )


def _cdf(name: str, prompts: str, mask: Mask, outcome: DayOutcome) -> Cdf:
    started = mask & (outcome.first_token_ps != NEVER)
    waits = np.sort(outcome.first_token_ps[started] - outcome.arrived_ps[started]) / PS_PER_SECOND
    ranks = np.unique(np.linspace(0, len(waits) - 1, min(len(waits), CDF_POINTS)).astype(np.int64))
    offered = int(mask.sum())
    shares = (ranks + 1) / max(offered, 1)
    return Cdf(name, prompts, offered, tuple(waits[ranks].tolist()), tuple(shares.tolist()))


def _span_means(
    at_ps: list[int], makespan_ps: int, values: list[int], edges: npt.NDArray[np.float64], divisor: int = 1
) -> Points:
    """Mean over each span of a quantity that is 0 before the first sample and keeps each value until the next."""
    times = np.array([0, *at_ps, max(makespan_ps, at_ps[-1])], np.float64)
    held = np.array([0, *values], np.float64)
    area = np.concatenate([[0.0], np.cumsum(held * np.diff(times))])
    means = np.diff(np.interp(edges, times, area)) / np.diff(edges) / divisor
    return tuple(np.round(means, 6).tolist())
