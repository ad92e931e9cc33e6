"""Curves of a run: CDFs by length class, and timelines of batch, queue and KV memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.curves import CDF_POINTS, TIMELINE_POINTS, curves
from headway.domain.costs import ServiceCosts
from headway.simulator.day_columns import DayColumns, LoadCurve
from headway.simulator.outcome import DayOutcome
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from tests.support.handmade_days import KV_BLOCKS, demo_trace, make_day, make_trace, ps, queue_day


def test_cdf_counts_the_offered_so_the_refused_keep_it_below_one() -> None:
    trace = make_trace([1, 1, 1, 9], [1] * 4)
    day = make_day([1.0, 3.0, None, 5.0], [1.0, 3.0, None, 5.0], refused={2: "full"})
    short, middle, longest = curves(trace, day, kv_blocks=KV_BLOCKS).ttft
    assert (short.seconds, short.shares) == ((1.0, 3.0), (pytest.approx(1 / 3), pytest.approx(2 / 3)))
    assert (middle.requests, middle.seconds, middle.shares) == (0, (), ())
    assert (longest.seconds, longest.shares) == ((5.0,), (1.0,))


def test_every_request_is_in_exactly_one_length_class() -> None:
    for prompts in ([5] * 7, list(range(100)), [1, 1, 1, 50, 50, 900]):
        trace = make_trace(prompts, [1] * len(prompts))
        day = make_day([1.0] * len(prompts), [1.0] * len(prompts))
        assert sum(c.requests for c in curves(trace, day, kv_blocks=KV_BLOCKS).ttft) == len(prompts)


def test_timeline_is_the_time_weighted_mean_of_each_span() -> None:
    day = make_day([1.0], [1.0], makespan=400.0)
    day.curve_ps = [int(t) for t in ps([0.0, 100.5, 300.0])]
    day.curve_waiting, day.curve_running, day.curve_blocks = [4, 0, 2], [1, 1, 1], [100, 500, 0]
    drawn = curves(make_trace([1], [1]), day, kv_blocks=KV_BLOCKS)
    assert len(drawn.seconds) == TIMELINE_POINTS
    assert drawn.seconds[:2] == (0.5, 1.5)
    assert drawn.waiting[99:102] == (4.0, 2.0, 0.0)
    assert drawn.waiting[-1] == 2.0
    assert drawn.kv_share[0] == 0.1
    assert drawn.kv_share[200] == 0.5
    assert np.mean(drawn.waiting) == pytest.approx((4 * 100.5 + 2 * 100) / 400)


@pytest.mark.parametrize("engine", [simulate, simulate_reference])
def test_an_idle_replica_is_drawn_idle(engine: Callable[..., DayOutcome]) -> None:
    trace = replace(make_trace([100, 100], [50, 50]), arrived_seconds=np.array([0.0, 100.0]))
    policies = Bundle("fcfs").build(costs=ServiceCosts(1e-4, 1e-2), seed=0, truth=lambda _: 50)
    day = engine(trace, EngineRules(kv_blocks=100), LinearStepTime(10**10, 0, 0), policies)
    drawn = curves(trace, day, kv_blocks=100)
    assert drawn.running[0] == 1
    assert set(drawn.running[10:-10]) == set(drawn.kv_share[10:-10]) == {0}
    assert drawn.running[-1] > 0


def test_thinned_curves_keep_busy_and_idle_in_proportion() -> None:
    columns, curve = DayColumns(1), LoadCurve()
    for turn in range(30_000):
        at_ps = turn * 4 * PS_PER_SECOND
        curve.sample(at_ps, 2, 4, 50)
        curve.sample(at_ps + PS_PER_SECOND + turn % 7 * 10**11, 0, 0, 0)
    columns.ended_ps[0] = 120_000 * PS_PER_SECOND
    day = columns.outcome(1, curve.blocks_peak, curve.points())
    assert len(day.curve_ps) < 9_000
    assert day.curve_ps == sorted(day.curve_ps)
    drawn = curves(make_trace([1], [1]), day, kv_blocks=100)
    assert np.mean(drawn.running) == pytest.approx(4 * 1.3 / 4, rel=0.05)
    assert np.mean(drawn.kv_share) == pytest.approx(0.5 * 1.3 / 4, rel=0.05)


def test_a_day_without_curves_draws_no_timeline() -> None:
    drawn = curves(make_trace([1], [1]), make_day([1.0], [1.0]), kv_blocks=KV_BLOCKS)
    assert drawn.seconds == drawn.waiting == drawn.kv_share == ()


def test_curves_stay_small_and_a_cdf_ends_at_its_largest_value() -> None:
    trace = demo_trace(3000)
    day = queue_day(trace, "fcfs")
    drawn = curves(trace, day, kv_blocks=KV_BLOCKS)
    assert max(len(c.seconds) for c in drawn.ttft) == CDF_POINTS
    waits = (day.first_token_ps - day.arrived_ps) / 1e12
    assert max(c.seconds[-1] for c in drawn.ttft) == pytest.approx(waits.max())
    assert all(c.shares[-1] == 1.0 and list(c.seconds) == sorted(c.seconds) for c in drawn.ttft)
