"""Samples: they are of the numbers that are shown, pair the policies, and widen with fewer repeats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.bench.metrics.mean_metrics import mean_metrics
from headway.bench.metrics.paired_draws import DRAWS, small_sample_factor
from headway.bench.metrics.request_values import MEASURED, request_values, statistic
from headway.bench.metrics.run_metrics import RunMetrics, Slo, Summary, summarise
from headway.bench.metrics.samples import Told, nested, not_worse, over_blocks, over_seeds
from headway.testing.examples import examples
from tests.support.handmade_days import demo_run, demo_trace, make_day, make_trace, queue_day

SLO = Slo(ttft_seconds=2.0)


def metrics(mean: float, *, preemptions: int = 0, goodput: float = 0.9) -> RunMetrics:
    base = demo_run("fcfs", 0.9).metrics
    return dataclasses.replace(
        base, ttft_seconds=Summary(mean, mean, mean, 2 * mean), preemptions=preemptions, goodput=goodput
    )


def numbers_of(found: RunMetrics) -> dict[str, float | None]:
    told = {}
    for key, parts in MEASURED.items():
        value = getattr(found, key)
        for part in parts:
            told[f"{key}.{part}" if part else key] = getattr(value, part) if part else value
    return told


def test_a_statistic_of_all_requests_is_the_number_that_is_shown() -> None:
    trace = dataclasses.replace(demo_trace(200), offline=np.arange(200) % 5 == 0)
    day = queue_day(trace, "fcfs")
    day.refused[7] = "too long"
    day.first_token_ps[7] = day.ended_ps[7] = -1
    alone = np.full(200, 0.3)
    values = request_values(trace, day, SLO, alone)
    shown = numbers_of(summarise(trace, day, SLO, alone, kv_blocks=1000))
    for name, number in shown.items():
        key, _, part = name.partition(".")
        assert statistic(part, values[key]) == pytest.approx(number), name


def test_counts_are_summed_and_other_numbers_averaged_over_seeds() -> None:
    joined = mean_metrics([metrics(1.0, preemptions=3), metrics(3.0, preemptions=5)])
    assert joined.ttft_seconds.mean == 2.0
    assert joined.preemptions == 8
    assert joined.requests == 800
    gone = [dataclasses.replace(metrics(1.0), jain_index=None, refused_reasons={"full": 2}) for _ in range(2)]
    joined = mean_metrics(gone)
    assert joined.jain_index is None
    assert joined.refused_reasons == {"full": 4}


def test_an_interval_over_seeds_holds_the_mean_and_that_of_counts_the_sum() -> None:
    seeds = [metrics(mean, preemptions=count) for mean, count in ((1.0, 4), (1.2, 9), (1.5, 2), (0.8, 6))]
    samples = over_seeds(seeds, mean_metrics(seeds), 0)
    mean, count = samples.interval("ttft_seconds.mean"), samples.interval("preemptions")
    assert mean is not None
    assert mean.low < 1.125 < mean.high
    assert count is not None
    assert count.low < 21 < count.high
    assert samples.interval("refused_reasons.full") is None


def test_equal_seeds_have_no_spread_and_shares_stay_shares() -> None:
    seeds = [metrics(1.0, goodput=share) for share in (1.0, 1.0, 0.2)]
    samples = over_seeds(seeds, mean_metrics(seeds), 0)
    assert samples.interval("ttft_seconds.mean") == pytest.approx((1.0, 1.0))
    share = samples.interval("goodput")
    assert share is not None
    assert 0.0 <= share.low < share.high == 1.0


@settings(max_examples=examples(30))
@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=8), st.floats(1.05, 3))
def test_a_policy_that_is_behind_by_one_factor_on_every_seed_is_told_apart(means: list[float], factor: float) -> None:
    fast, slow = [metrics(mean) for mean in means], [metrics(factor * mean) for mean in means]
    both = [over_seeds(one, mean_metrics(one), 0) for one in (fast, slow)]
    told = [samples.told["ttft_seconds.mean"] for samples in both]
    assert [*not_worse(told, 0)] == [True, False]
    ratio = both[1].ratio("ttft_seconds.mean", both[0])
    assert ratio is not None
    assert ratio.low == pytest.approx(factor)
    assert ratio.high == pytest.approx(factor)


def test_two_policies_that_take_turns_to_be_better_are_not_told_apart() -> None:
    first, second = [1.0, 2.0, 1.0, 2.1], [2.0, 1.0, 2.0, 1.0]
    told = [
        over_seeds(seeds, mean_metrics(seeds), 0).told["ttft_seconds.mean"]
        for seeds in ([metrics(mean) for mean in first], [metrics(mean) for mean in second])
    ]
    assert not_worse(told, 0).all()
    assert not_worse(told, 1).all()


def test_where_more_is_better_less_is_behind() -> None:
    told = [Told(0.9, np.full(DRAWS, 0.9)), Told(0.5, np.full(DRAWS, 0.5))]
    assert [*not_worse(told, 0, is_high_better=True)] == [True, False]
    assert not_worse(told, 0).all()


def test_blocks_of_one_day_are_drawn_alike_for_all_policies() -> None:
    trace = demo_trace(400)
    runs = [
        over_blocks(trace, queue_day(trace, order), SLO, None, blocks=10, seed=3)
        for order in ("fcfs", "fcfs", "random")
    ]
    assert set(runs[0].values) == set(runs[2].values)
    assert all((runs[0].values[name] == runs[1].values[name]).all() for name in runs[0].values)
    ratio = runs[1].ratio("ttft_seconds.mean", runs[0])
    assert ratio == (1.0, 1.0)
    interval = runs[0].interval("ttft_seconds.p99")
    assert interval is not None
    assert interval.low < interval.high


def test_a_number_that_some_sample_lacks_has_no_interval() -> None:
    trace = make_trace([10, 10, 10, 900], [5, 5, 5, 5], arrived=np.array([0.0, 1.0, 2.0, 3.0]))
    day = make_day([0.1, 1.1, 2.1, 3.1], [0.5, 1.5, 2.5, 3.5], arrived=[0.0, 1.0, 2.0, 3.0])
    samples = over_blocks(trace, day, SLO, None, blocks=4, seed=0)
    assert samples.interval("ttft_longest_5pct_seconds.mean") is None
    assert samples.interval("goodput") is not None


def test_fewer_repeats_widen_more_as_students_t_does() -> None:
    # t at 95 % with 2, 4 and 9 degrees of freedom: 2.920, 2.132, 1.833 (any table), over 1.645, times √(n / (n - 1)).
    for parts, student in ((3, 2.920), (5, 2.132), (10, 1.833)):
        assert small_sample_factor(parts) == pytest.approx(student / 1.6449 * (parts / (parts - 1)) ** 0.5, rel=0.004)
    with pytest.raises(ValueError, match="3 parts"):
        small_sample_factor(2)


def test_intervals_are_nested_by_the_names_of_numbers() -> None:
    seeds = [metrics(mean) for mean in (1.0, 1.2, 1.5)]
    samples = over_seeds(seeds, mean_metrics(seeds), 0)
    told = nested({name: samples.interval(name) for name in ("ttft_seconds.mean", "goodput", "none")})
    assert set(told) == {"ttft_seconds", "goodput"}
    assert set(told["ttft_seconds"]["mean"]) == set(told["goodput"]) == {"low", "high"}
