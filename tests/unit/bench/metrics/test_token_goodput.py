"""Token goodput by hand: each kind of deadline, programs as a whole, and what does not count."""

from __future__ import annotations

import numpy as np
import pytest

from headway.bench.metrics.run_metrics import RunMetrics, Slo, summarise
from headway.simulator.outcome import DayOutcome
from headway.simulator.trace import Trace
from tests.support.handmade_days import make_day, make_trace

NAN = np.nan


def numbers(trace: Trace, day: DayOutcome) -> RunMetrics:
    return summarise(trace, day, Slo(), None, kv_blocks=10)


def goodput(trace: Trace, day: DayOutcome) -> tuple[float | None, float | None]:
    found = numbers(trace, day)
    return found.token_goodput_tokens_per_second, found.token_goodput_share


def test_tokens_of_requests_in_time_are_counted_and_those_without_a_deadline_are_not() -> None:
    """In time with 10 tokens, late with 20, never ended with 30, and 40 without a deadline."""
    trace = make_trace([1] * 4, [10, 20, 30, 40], deadline_seconds=np.array([1.0, 1.0, 1.0, NAN]))
    day = make_day([1.0, 1.5, None, 1.0], [2.0, 2.0, None, 5.0], makespan=5.0)
    assert goodput(trace, day) == (pytest.approx(10 / 5), pytest.approx(10 / 60))


def test_every_deadline_of_a_request_has_to_be_kept() -> None:
    """TPOT 0.1 s kept and missed, the end kept and missed; a single token has no TPOT to miss."""
    trace = make_trace(
        [1] * 5,
        [11, 11, 11, 11, 1],
        tpot_deadline_seconds=np.array([0.1, 0.1, NAN, NAN, 0.001]),
        end_deadline_seconds=np.array([NAN, NAN, 4.0, 4.0, NAN]),
    )
    day = make_day([1.0] * 5, [2.0, 2.5, 4.0, 4.5, 1.0])
    assert goodput(trace, day)[1] == pytest.approx((11 + 11 + 1) / 45)


def test_a_program_counts_as_a_whole() -> None:
    """Program 0 ends in time, 1 late with its second request, of 2 a request is refused; its first row's time holds."""
    trace = make_trace(
        [1] * 6,
        [10, 10, 20, 20, 30, 30],
        program=np.array([0, 0, 1, 1, 2, 2]),
        stage=np.array([1, 2, 1, 2, 1, 2]),
        program_deadline_seconds=np.array([5.0, 0.1, 5.0, 99.0, 5.0, 5.0]),
    )
    day = make_day([1.0] * 5 + [None], [2.0, 5.0, 2.0, 5.5, 2.0, None], refused={5: "too long"})
    assert goodput(trace, day)[1] == pytest.approx(20 / 120)


def test_a_request_of_a_program_in_time_may_still_miss_its_own_deadline() -> None:
    trace = make_trace(
        [1, 1],
        [10, 20],
        program=np.array([0, 0]),
        program_deadline_seconds=np.array([9.0, 9.0]),
        end_deadline_seconds=np.array([1.0, NAN]),
    )
    assert goodput(trace, make_day([1.0, 1.0], [2.0, 2.0]))[1] == pytest.approx(20 / 30)


def test_an_operators_bound_is_no_deadline_of_a_client() -> None:
    trace = make_trace([1], [5], deadline_seconds=np.array([1.0]), deadline_is_slo=True)
    assert goodput(trace, make_day([0.5], [1.0])) == (None, None)
    assert numbers(trace, make_day([0.5], [1.0])).total_tardiness_seconds == 0.0
    assert goodput(make_trace([1], [5]), make_day([0.5], [1.0])) == (None, None)


def test_offline_requests_do_not_count() -> None:
    trace = make_trace([1, 1], [5, 7], deadline_seconds=np.array([1.0, 1.0]), offline=np.array([False, True]))
    assert goodput(trace, make_day([0.5, 9.0], [1.0, 9.5]))[1] == 1.0
