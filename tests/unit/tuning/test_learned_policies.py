"""What policies have learned is given back to policies of the same names, and to no others."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.event import Arrived
from headway.domain.request import Request
from headway.scheduling.bundle import bundle
from headway.tuning.learned_policies import LearnedPolicies


def learned(ordering: str = "ewsjf", prediction: str = "histogram") -> LearnedPolicies:
    policies = bundle(ordering=ordering, prediction=prediction, costs=ServiceCosts(1e-4, 1e-2), seed=0)
    return LearnedPolicies(policies, ordering, prediction)


def taught() -> dict[str, Any]:
    teacher = learned()
    for number in range(300):
        request = Request(number, float(number), 10 + 400 * (number % 2))
        request.estimate = teacher.policies.prediction.predict(request)
        teacher.policies.ordering.observe(Arrived(request, float(number)))  # type: ignore[attr-defined]
    return dict(json.loads(json.dumps(teacher.saved({"b_u": 2.0}))))


def test_the_same_names_get_everything_back() -> None:
    fresh, saved = learned(), taught()
    assert saved["ordering"]["state"]["window"]
    assert fresh.restore(saved, "file") == ({"b_u": 2.0}, [])
    assert json.loads(json.dumps(fresh.saved(None))) == {**saved, "tuned": None}


def test_another_name_starts_afresh_and_gets_no_tuned_values() -> None:
    other = learned("ewsjf-published")
    before = other.saved(None)
    tuned, problems = other.restore(taught(), "file")
    assert tuned == {}
    assert problems == ["file: its ordering is 'ewsjf', not 'ewsjf-published', which starts afresh"]
    assert other.saved(None)["ordering"] == before["ordering"]


@pytest.mark.parametrize(
    "saved",
    [{}, {"ordering": 3, "tuned": 4}, {"ordering": {"name": "ewsjf"}, "tuned": None}, {"ordering": {"state": None}}],
)
def test_what_is_not_there_is_no_problem(saved: dict[str, Any]) -> None:
    assert learned().restore(saved, "file") == ({}, [])


def test_a_state_of_another_shape_is_a_problem_of_one_sentence() -> None:
    tuned, problems = learned().restore({"ordering": {"name": "ewsjf", "state": {"window": "x"}}}, "file")
    assert tuned == {}
    assert len(problems) == 1
    assert problems[0].startswith("file: ")
    assert problems[0].endswith("; starting afresh")


def test_who_can_learn() -> None:
    assert learned().can_learn()
    assert not learned("fcfs", "declared-max").can_learn()


def test_a_policy_that_fails_is_named() -> None:
    failing = learned()
    failing.policies.ordering.state = lambda: 1 / 0  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="ewsjf cannot report its learned state"):
        failing.saved(None)


@pytest.mark.parametrize("value", ["x", None, [1], True, math.nan, math.inf, 10**400])
def test_a_tuned_value_that_is_no_number_is_a_problem_and_stops_nothing(value: object) -> None:
    saved = taught() | {"tuned": {"b_u": value}}
    assert learned().restore(saved, "file") == (
        {},
        ["file: a tuned value is no finite number; tuning begins with the options as configured"],
    )


@pytest.mark.parametrize("state", [5, "x", [1, 2], True])
def test_a_state_that_is_no_table_is_a_problem(state: object) -> None:
    _, problems = learned().restore({"ordering": {"name": "ewsjf", "state": state}}, "file")
    assert problems == ["file: what ewsjf had learned is no table; starting afresh"]


def test_a_policy_of_an_outside_package_may_raise_anything() -> None:
    ours = learned()

    def fails(state: object) -> None:
        raise ZeroDivisionError("a slip")

    ours.policies.ordering.restore = fails  # type: ignore[attr-defined]
    _, problems = ours.restore(taught(), "file")
    assert problems == [
        "file: ewsjf cannot take back what it had learned (ZeroDivisionError('a slip')); starting afresh"
    ]
