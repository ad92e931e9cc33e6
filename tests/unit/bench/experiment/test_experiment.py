"""An experiment runs each policy at each load, in order and repeatably."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from headway.bench.experiment.bundles import Bundle, named_bundles
from headway.bench.experiment.comparison import Comparison, json_text
from headway.bench.experiment.parallel import RunFailed
from headway.bench.experiment.simulated_runs import Experiment, compare
from headway.bench.metrics.run_metrics import Slo
from headway.bench.user_mistake import UserMistake
from headway.domain.estimate import PointEstimate
from headway.policies import catalog
from headway.policies.admission.greedy import Greedy
from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.simulator.replica import replica
from headway.simulator.trace import Trace

SERVER = replica("l4", "llama-3.1-8b")


def traffic(requests: int = 300, seed: int = 0) -> Trace:
    chance = np.random.default_rng(seed)
    return Trace(
        "traffic",
        np.sort(chance.uniform(0, 60, requests)),
        chance.integers(1, 2000, requests),
        chance.integers(1, 100, requests),
        tenant=chance.integers(0, 3, requests),
        tenants=("a", "b", "c"),
    )


def experiment(**changes: object) -> Experiment:
    bundles = named_bundles(["fcfs", "smallest-volume-first", "random", "fair-share"], Bundle("any"))
    made = Experiment(traffic(), SERVER, bundles, loads=(0.5, 1.2), seed=3, slo=Slo(2.0, 0.1))
    return replace(made, **changes)  # type: ignore[arg-type]


def without_wall_times(comparison: Comparison) -> str:
    content = json.loads(json_text(comparison))
    for run in content["runs"]:
        assert run.pop("wall_seconds") > 0
    return json.dumps(content)


def test_two_processes_give_what_one_gives() -> None:
    alone, together = (compare(experiment(), jobs=jobs) for jobs in (1, 2))
    assert without_wall_times(alone) == without_wall_times(together)
    assert [run.curves for run in alone.runs] == [run.curves for run in together.runs]


def test_a_run_for_each_policy_at_each_load_in_order() -> None:
    runs = compare(experiment(), jobs=1).runs
    names = ["fcfs", "smallest-volume-first", "random", "fair-share"]
    assert [(run.load, run.policy) for run in runs] == [(load, name) for load in (0.5, 1.2) for name in names]
    assert all(run.metrics.completed == 300 and run.seed == 3 for run in runs)


def test_without_a_load_times_stay_as_recorded_and_nothing_is_measured() -> None:
    result = compare(experiment(loads=(None,)), jobs=1)
    assert result.saturation is None
    assert {run.load for run in result.runs} == {None}
    assert min(run.metrics.makespan_seconds for run in result.runs) >= float(traffic().arrived_seconds[-1])


def test_the_load_is_the_offered_rate_over_saturation() -> None:
    """At a load far below 1 the makespan is the span of arrivals, so the rate can be read off it."""
    result = compare(experiment(loads=(0.05,)), jobs=1)
    assert result.saturation is not None
    rate = result.saturation["requests_per_second"]
    assert isinstance(rate, float)
    assert 299 / result.runs[0].metrics.makespan_seconds == pytest.approx(0.05 * rate, rel=0.02)


def test_the_seed_moves_what_draws_lots_and_nothing_else() -> None:
    first, second = (compare(experiment(seed=seed, loads=(1.2,)), jobs=1) for seed in (0, 1))
    ttft = [[run.metrics.ttft_seconds for run in result.runs] for result in (first, second)]
    names = [run.policy for run in first.runs]
    changed = {name for name, one, other in zip(names, *ttft, strict=True) if one != other}
    assert changed == {"random"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_named_with_its_reason(jobs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Fcfs):
        __module__ = "headway.policies.ordering.broken"  # an outside policy would be blamed instead

        def rank(self, request: object) -> float:
            raise ZeroDivisionError("a fault in the policy")

    monkeypatch.setitem(catalog.ORDERING, "broken", Broken)
    bundles = [Bundle("fcfs"), Bundle("mine", ordering="broken")]
    with pytest.raises(RunFailed, match=r"^mine at load 0\.9 failed: a fault in the policy$"):
        compare(experiment(bundles=bundles, loads=(0.9,)), jobs=jobs)


class Outside(Fcfs):
    """As of another package, for this module is none of Headway's."""


class RanksNan(Outside):
    def rank(self, request: object) -> float:
        return math.nan


class HoldsBackwards(Greedy):
    def hold_steps(self, *_: object) -> int:
        return -1


class NamesNobody:
    def victim(self, running: object, now: float) -> object:
        return None


class ExpectsNan(RunningMean):
    def predict(self, request: object) -> Any:
        return PointEstimate(math.nan, "nan")  # type: ignore[arg-type]


class OutsideEwsjf(Ewsjf):
    """It listens, and redraws its lanes."""


@pytest.mark.parametrize(
    ("kind", "policy", "sentence"),
    [
        ("ordering", RanksNan, "the ordering policy 'mine' gave request 0 the rank nan; correct the policy"),
        ("admission", HoldsBackwards, r"the admission policy 'mine' held request \d+ for -1 steps; correct"),
        ("preemption", NamesNobody, "the preemption policy 'mine' named None, which does not run; correct"),
        ("prediction", ExpectsNan, "the prediction policy 'mine' expects nan output tokens of request 0; correct"),
    ],
)
def test_an_answer_without_sense_of_an_outside_policy_ends_the_comparison(
    kind: catalog.Kind, policy: type[Any], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(catalog.ROOMS[kind], "mine", policy)  # type: ignore[arg-type]
    server = replica("l4", "llama-3.1-8b", kv_tokens=4_000)
    asked = experiment(replica=server, bundles=[replace(Bundle("row"), **{kind: "mine"})], loads=(None,))
    with pytest.raises(UserMistake, match=f"^row: {sentence}"):
        compare(asked, jobs=1)


def test_an_outside_policy_decides_as_one_of_ours_of_the_same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also inside another: checking its answers changes none, and it hears each event once."""
    monkeypatch.setitem(catalog.ORDERING, "outside-ewsjf", OutsideEwsjf)
    options = {"ordering": {"relearn_requests": 50, "overdue_seconds": 1.0}}
    for before in ("", "fair-share/"):
        pair = [
            Bundle(name, ordering=before + name, options={} if before else options)
            for name in ("ewsjf", "outside-ewsjf")
        ]
        ours, outside = compare(experiment(bundles=pair, loads=(1.3,)), jobs=1).runs
        assert (ours.metrics, ours.curves) == (outside.metrics, outside.curves)


def test_two_bundles_of_one_label_cannot_be_told_apart() -> None:
    with pytest.raises(UserMistake, match="fcfs is named twice"):
        experiment(bundles=[Bundle("fcfs"), Bundle("fcfs", admission="reserve-max")])


def test_an_empty_trace_is_told() -> None:
    with pytest.raises(UserMistake, match="empty: it has no request to replay"):
        experiment(trace=Trace("empty", np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)))
