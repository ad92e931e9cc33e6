"""The numbers of a run, worked out by hand on small days."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from headway.bench.metrics.run_metrics import DEFINITIONS, RunMetrics, Slo, Summary, jain, length_classes, summarise
from headway.bench.user_mistake import UserMistake
from headway.simulator.outcome import DayOutcome, TokenGaps
from headway.simulator.trace import Trace
from tests.support.handmade_days import KV_BLOCKS, demo_trace, make_day, make_trace, queue_day


def numbers(trace: Trace, day: DayOutcome, slo: Slo | None = None, alone: object = None) -> RunMetrics:
    unloaded = None if alone is None else np.asarray(alone, float)
    return summarise(trace, day, slo or Slo(), unloaded, kv_blocks=KV_BLOCKS)


def test_every_number_of_a_day_done_by_hand() -> None:
    trace = make_trace([10, 20, 30, 4000], [1, 11, 21, 41], arrived=[0, 1, 2, 3])
    day = make_day(
        [1.0, 3.0, 6.0, 13.0],
        [1.0, 4.0, 8.0, 17.0],
        arrived=[0, 1, 2, 3],
        makespan=20.0,
        preemptions=3,
        blocks_peak=250,
        gaps=[TokenGaps(100_000_000_000, 0, 70, 1)],
    )
    m = numbers(trace, day, alone=[1.0, 1.0, 2.0, 7.0])
    assert (m.requests, m.completed, m.refused, m.unfinished) == (4, 4, 0, 0)
    assert m.ttft_seconds == Summary(4.25, 3.0, pytest.approx(8.2), pytest.approx(9.82))  # of 1, 2, 4, 10
    assert m.ttft_short_half_seconds.mean == 1.5  # median prompt is 25
    assert m.ttft_longest_5pct_seconds.p50 == 10.0
    assert m.tpot_seconds.mean == pytest.approx(0.1)  # 1/10, 2/20, 4/40; the one-token request has none
    assert m.tpot_seconds.p99 == pytest.approx(0.1)
    assert m.e2e_seconds.mean == 6.0  # 1, 3, 6, 14
    assert m.normalised_latency_seconds_per_token.mean == pytest.approx((1 + 3 / 11 + 6 / 21 + 14 / 41) / 4)
    assert m.slowdown.mean == pytest.approx((1 + 3 + 3 + 2) / 4)
    assert m.itl_seconds == Summary(*[pytest.approx(0.1)] * 4)
    assert m.throughput_tokens_per_second == pytest.approx((1 + 11 + 21 + 41) / 20)
    assert (m.preemptions, m.recomputed_tokens, m.kv_peak_share, m.makespan_seconds) == (3, 48, 0.25, 20.0)


def test_goodput_counts_refused_and_unfinished_as_misses_of_all_that_was_offered() -> None:
    trace = make_trace([1, 1, 1, 1, 1], [2, 2, 2, 2, 2])
    day = make_day(
        [1.0, 1.0, None, None, 1.0],
        [2.0, 9.0, None, None, None],
        refused={2: "does not fit"},
    )
    m = numbers(trace, day, Slo(ttft_seconds=1.0, e2e_seconds=5.0))
    assert m.goodput == 1 / 5
    assert (m.completed, m.refused, m.unfinished) == (2, 1, 2)
    assert m.refused_reasons == {"does not fit": 1}
    assert numbers(trace, day).goodput == 2 / 5, "without an SLO it is the share completed"


def test_a_request_that_was_refused_after_its_first_token_is_not_completed() -> None:
    m = numbers(make_trace([1], [2]), make_day([1.0], [2.0], refused={0: "gave up"}))
    assert (m.completed, m.refused, m.goodput) == (0, 1, 0.0)


def test_a_bound_is_met_when_equal_and_a_single_token_has_no_tpot_to_miss() -> None:
    trace = make_trace([1, 1, 1], [1, 11, 11])
    day = make_day([1.0, 1.0, 1.0], [1.0, 2.0, 2.5])
    assert numbers(trace, day, Slo(tpot_seconds=0.1)).goodput == pytest.approx(2 / 3)
    assert numbers(trace, day, Slo(ttft_seconds=1.0)).goodput == 1.0
    assert numbers(trace, day, Slo(ttft_seconds=0.99)).goodput == 0.0


def test_empty_classes_are_none_and_never_zero() -> None:
    trace = make_trace([5, 5], [1, 1])
    m = numbers(trace, make_day([None, None], [None, None], refused={0: "a", 1: "b"}))
    for spread in (m.ttft_seconds, m.ttft_short_half_seconds, m.tpot_seconds, m.itl_seconds, m.e2e_seconds, m.slowdown):
        assert spread == Summary(None, None, None, None)
    assert m.goodput == 0.0
    assert m.throughput_tokens_per_second == 0.0


def test_a_trace_without_requests_has_numbers_too() -> None:
    m = numbers(make_trace([], []), make_day([], [], makespan=0.0))
    assert (m.requests, m.goodput, m.throughput_tokens_per_second) == (0, 0.0, 0.0)


def test_ties_put_equal_prompts_into_the_same_class() -> None:
    shorter, longest = length_classes(make_trace([7] * 10, [1] * 10))
    assert shorter.all()
    assert longest.all()
    shorter, longest = length_classes(make_trace([1, 2, 2, 2, 3], [1] * 5))
    assert shorter.tolist() == [True, True, True, True, False]
    assert longest.tolist() == [False, False, False, False, True]


def test_the_long_class_of_a_hundred_prompts_is_five() -> None:
    shorter, longest = length_classes(make_trace(list(range(100, 0, -1)), [1] * 100))
    assert (int(shorter.sum()), int(longest.sum())) == (50, 5)
    assert longest[:5].all()


@pytest.mark.parametrize(
    ("shares", "index"),
    [([1, 1, 1], 1.0), ([1, 0, 0, 0], 0.25), ([2, 1], 0.9), ([5], 1.0), ([0, 0], None)],
)
def test_jain_index_of_known_allocations(shares: list[float], index: float | None) -> None:
    assert jain(np.array(shares, float)) == (None if index is None else pytest.approx(index))


def test_jain_over_tenants_uses_the_mean_speed_and_leaves_out_who_offered_nothing() -> None:
    tenant = np.array([0, 0, 2])
    trace = make_trace([1, 1, 1], [2, 2, 2], tenant=tenant, tenants=("a", "nobody", "c"))
    day = make_day([1.0, 1.0, 1.0], [2.0, 2.0, 4.0])
    m = numbers(trace, day, alone=[2.0, 2.0, 2.0])  # speeds 1 and 1/2
    assert m.jain_index == pytest.approx(1.5**2 / (2 * 1.25))
    assert numbers(trace, day).jain_index is None, "unknown without the times alone"
    starved = make_day([1.0, 1.0, None], [2.0, 2.0, None])
    assert numbers(trace, starved, alone=[2.0, 2.0, 2.0]).jain_index == pytest.approx(0.5)
    assert numbers(make_trace([1], [1]), make_day([1.0], [1.0])).jain_index == 1.0


def test_total_tardiness_sums_what_first_tokens_are_late_by() -> None:
    """Late by 0.5 and 2 s, in time, never begun, and without a deadline."""
    deadlines = np.array([0.5, 1.0, 9.0, 1.0, np.nan])
    trace = make_trace([1] * 5, [2] * 5, deadline_seconds=deadlines)
    day = make_day([1.0, 3.0, 3.0, None, 50.0], [2.0, 4.0, 4.0, None, 60.0])
    assert numbers(trace, day).total_tardiness_seconds == pytest.approx(2.5)
    assert numbers(make_trace([1], [1]), make_day([1.0], [1.0])).total_tardiness_seconds is None
    undated = make_trace([1], [1], deadline_seconds=np.array([np.nan]))
    assert numbers(undated, make_day([1.0], [1.0])).total_tardiness_seconds is None


def test_every_number_has_a_definition_in_the_order_of_the_fields() -> None:
    assert list(DEFINITIONS) == [field.name for field in dataclasses.fields(RunMetrics)]


def test_json_has_the_contracts_keys() -> None:
    trace = demo_trace(50)
    data = numbers(trace, queue_day(trace, "fcfs")).to_json()
    contract = {
        "requests",
        "completed",
        "refused",
        "ttft_seconds",
        "ttft_short_half_seconds",
        "ttft_longest_5pct_seconds",
        "tpot_seconds",
        "e2e_seconds",
        "normalised_latency_seconds_per_token",
        "goodput",
        "throughput_tokens_per_second",
        "preemptions",
        "recomputed_tokens",
        "makespan_seconds",
    }
    assert contract <= set(data)
    for key in ("ttft_seconds", "tpot_seconds", "normalised_latency_seconds_per_token", "slowdown"):
        spread = data[key]
        assert isinstance(spread, dict)
        assert list(spread) == ["mean", "p50", "p90", "p99"]


def test_columns_that_do_not_fit_are_named() -> None:
    trace, day = make_trace([1, 1], [1, 1]), make_day([1.0], [1.0])
    with pytest.raises(ValueError, match="outcome has 1 rows, the trace 2"):
        numbers(trace, day)
    with pytest.raises(ValueError, match="unloaded_seconds has 1 rows"):
        numbers(trace, make_day([1.0, 1.0], [1.0, 1.0]), alone=[1.0])


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("ttft=2s,tpot=60ms", Slo(2.0, 0.06)),
        (" TTFT = 500 ms , e2e=.5s", Slo(0.5, None, 0.5)),
        ("tpot=1.5ms", Slo(tpot_seconds=0.0015)),
    ],
)
def test_slo_reads_names_and_units(text: str, slo: Slo) -> None:
    assert Slo.parse(text) == slo
    assert Slo.parse(str(slo)) == slo


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no '='"),
        ("ttft", "'ttft' has no '='"),
        ("ttft=2", "unit s or ms"),
        ("ttft=2m", "unit s or ms"),
        ("ttft=-2s", "unit s or ms"),
        ("ttft=nans", "unit s or ms"),
        ("ttft=0s", "more than 0"),
        ("ttft=" + "9" * 400 + "s", "more than 0|finite"),
        ("itl=2s", "'itl' is none of ttft, tpot, e2e"),
        ("ttft=2s,ttft=3s", "given twice"),
        ("ttft=2s,", "has no '='"),
    ],
)
def test_slo_says_what_is_wrong(text: str, sentence: str) -> None:
    with pytest.raises(UserMistake, match=sentence):
        Slo.parse(text)


def test_the_distance_from_the_lower_bound() -> None:
    trace = make_trace([10, 20], [2, 2])
    day = make_day([1.0, 2.0], [2.0, 4.0])
    assert summarise(trace, day, Slo(), None, kv_blocks=1, lower_bound_seconds=1.5).times_lower_bound == 2.0
    assert numbers(trace, day).times_lower_bound is None
