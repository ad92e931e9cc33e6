"""A bundle by names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import pytest

from headway.domain.costs import ServiceCosts
from headway.policies.admission.peak_check import PeakCheck
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.prediction.past_future_prediction import PastFuturePrediction
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.preemption.least_sunk_work import LeastSunkWork
from headway.scheduling.bundle import bundle, bundle_of, name_and_options

COSTS = ServiceCosts(1e-4, 1e-2)


class Configured(NamedTuple):
    ordering: str
    admission: str
    preemption: str
    prediction: str
    options: Mapping[str, Mapping[str, object]] | None = None


def test_names_become_policies_and_the_rest_is_the_default() -> None:
    made = bundle(ordering="highest-response-ratio", admission="peak-check", costs=COSTS, seed=0)
    assert isinstance(made.ordering, HighestResponseRatio)
    assert isinstance(made.admission, PeakCheck)
    assert isinstance(made.preemption, LatestAdmitted)
    assert isinstance(made.prediction, RunningMean)


def test_options_go_by_kind_and_instances_are_fresh() -> None:
    options = {"ordering": {"lane_width": 3.0}, "admission": {"reserve": 0.1}}
    first, second = (
        bundle(ordering="highest-response-ratio", admission="peak-check", options=options, costs=COSTS, seed=0)
        for _ in range(2)
    )
    assert first.ordering is not second.ordering
    with pytest.raises(ValueError, match=r"^unknown option 'lane_width' of the admission policy peak-check"):
        bundle(admission="peak-check", options={"admission": {"lane_width": 3.0}}, costs=COSTS, seed=0)


def test_a_configuration_names_all_four_and_their_options() -> None:
    options = {"admission": {"reserve": 1.5}}
    named = Configured("highest-response-ratio", "peak-check", "least-sunk-work", "past-future")
    made = bundle_of(named, costs=COSTS, seed=0)
    kinds = (HighestResponseRatio, PeakCheck, LeastSunkWork, PastFuturePrediction)
    assert tuple(map(type, (made.ordering, made.admission, made.preemption, made.prediction))) == kinds
    with pytest.raises(ValueError, match=r"^peak-check: reserve must be"):
        bundle_of(named._replace(options=options), costs=COSTS, seed=0)


def test_a_mistyped_kind_is_told() -> None:
    with pytest.raises(ValueError, match=r"^unknown kind of policy 'odering': did you mean 'ordering'\?"):
        bundle(options={"odering": {}}, costs=COSTS, seed=0)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hrrn", ("highest-response-ratio", {})),
        ({"name": "hrrn"}, ("highest-response-ratio", {})),
        ({"name": "hrrn", "options": {"lane_width": 2.0}}, ("highest-response-ratio", {"lane_width": 2.0})),
    ],
)
def test_a_policy_is_written_as_a_name_or_a_table(value: object, expected: tuple[str, dict[str, object]]) -> None:
    assert name_and_options("ordering", value, "here") == expected


@pytest.mark.parametrize(
    "value",
    [3, {}, {"name": 3}, {"name": "fcfs", "options": 3}, {"name": "fcfs", "more": {}}, {"options": {}}],
    ids=str,
)
def test_anything_else_is_told_with_its_place(value: object) -> None:
    with pytest.raises(ValueError, match=r"^here must be a name, or \{name"):
        name_and_options("ordering", value, "here")
