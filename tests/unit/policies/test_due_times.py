"""Due times: the earliest of a request's deadlines, and how a program's time is split over its stages."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import PointEstimate
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.domain.request import Request
from headway.policies.due_times import DueTimes
from headway.testing.examples import examples

COSTS = ServiceCosts(prefill_seconds_per_token=0.001, decode_seconds_per_token=0.02)


def request(
    *,
    deadline: float | None = None,
    later: LaterDeadlines | None = None,
    at: float = 0.0,
    produced: int = 0,
    expected: int = 101,
    tenant: str = "",
) -> Request:
    made = Request(0, at, 100, deadline=deadline, later_deadlines=later, produced_tokens=produced, tenant=tenant)
    made.estimate = PointEstimate(expected, "test")
    return made


def stage(number: int, stages: int | None, deadline: float | None, name: str = "p") -> LaterDeadlines:
    return LaterDeadlines(program=ProgramStage(name, number, stages, deadline))


def test_without_deadlines_nothing_is_due() -> None:
    due = DueTimes(COSTS)
    assert due.first_token_by(request()) == due.ends_by(request()) == math.inf
    assert due.first_token_by(request(later=LaterDeadlines(tpot_seconds=0.05))) == math.inf


def test_the_first_token_has_its_own_deadline_or_what_the_end_leaves_for_it() -> None:
    due, end = DueTimes(COSTS), LaterDeadlines(end=10.0)
    assert due.first_token_by(request(deadline=3.0)) == 3.0
    assert due.first_token_by(request(later=end)) == pytest.approx(10 - 100 * 0.02)
    assert due.first_token_by(request(deadline=3.0, later=end)) == 3.0
    assert due.first_token_by(request(deadline=9.0, later=end)) == pytest.approx(8.0)
    assert DueTimes().first_token_by(request(later=end)) == due.ends_by(request(later=end)) == 10.0


def test_after_a_preemption_the_token_it_waits_for_is_due_later() -> None:
    paced = LaterDeadlines(tpot_seconds=0.05)
    assert DueTimes(COSTS).first_token_by(request(deadline=3.0, later=paced, produced=40)) == pytest.approx(5.0)
    assert DueTimes(COSTS).first_token_by(request(deadline=3.0, produced=40)) == 3.0


@pytest.mark.parametrize(
    ("number", "at", "due"), [(1, 0.0, 15.0), (2, 20.0, 20 + 40 / 3), (4, 50.0, 60.0), (9, 1.0, 60.0)]
)
def test_what_is_left_of_a_program_is_split_evenly_over_its_stages_left(number: int, at: float, due: float) -> None:
    assert DueTimes().ends_by(request(later=stage(number, 4, 60.0), at=at)) == pytest.approx(due)


def test_a_stage_of_a_program_that_is_late_already_is_due_at_the_programs_deadline() -> None:
    assert DueTimes().ends_by(request(later=stage(1, 4, 60.0), at=70.0)) == 60.0


def test_a_request_has_the_earlier_of_its_own_end_and_its_stages() -> None:
    due = DueTimes()
    later = LaterDeadlines(end=12.0, program=ProgramStage("p", 1, 4, 60.0))
    assert due.ends_by(request(later=later)) == 12.0
    assert due.ends_by(request(later=later._replace(end=40.0))) == 15.0
    assert due.ends_by(request(later=later._replace(program=ProgramStage("q", 1, 4, None)))) == 12.0


def test_how_many_stages_follow_is_learned_from_programs_that_had_them() -> None:
    """Of four programs two went on to stage 2 and one to stage 3: at stage 1 there are 1 + 3/5 left for the fifth."""
    due = DueTimes()
    assert due.ends_by(request(later=stage(1, None, 60.0, "a"))) == 60.0, "nothing is known yet"
    for name, stages in (("b", 1), ("c", 2), ("d", 3)):
        for number in range(1, stages + 1):
            due.ends_by(request(later=stage(number, None, None, name)))
    assert due.ends_by(request(later=stage(1, None, 60.0, "e"))) == pytest.approx(60 / 1.6)
    assert due.ends_by(request(later=stage(2, None, 60.0, "a"), at=30.0)) == pytest.approx(30 + 30 / (1 + 1 / 3))


def test_requests_of_one_stage_side_by_side_count_once() -> None:
    due = DueTimes()
    for _ in range(5):
        due.ends_by(request(later=stage(1, None, 60.0, "a")))
    due.ends_by(request(later=stage(2, None, 60.0, "a")))
    assert due.ends_by(request(later=stage(1, None, 60.0, "b"))) == pytest.approx(60 / 1.5)


def test_programs_of_the_same_name_of_two_tenants_are_two() -> None:
    due = DueTimes()
    due.ends_by(request(later=stage(1, None, 60.0), tenant="a"))
    due.ends_by(request(later=stage(2, None, 60.0), tenant="a"))
    assert due.ends_by(request(later=stage(1, None, 60.0), tenant="b")) == pytest.approx(60 / 1.5)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 400), st.none() | st.integers(1, 400)), min_size=1))
@settings(max_examples=examples(100))
def test_the_answer_for_one_request_never_changes(stages: list[tuple[str, int, int | None]]) -> None:
    due = DueTimes()
    asked = [
        request(later=stage(number, known, 60.0, name), at=float(at)) for at, (name, number, known) in enumerate(stages)
    ]
    answers = [due.ends_by(one) for one in asked]
    assert [due.ends_by(one) for one in asked] == answers
    assert all(answer <= max(60.0, one.arrived_at) for answer, one in zip(answers, asked, strict=True))


def test_memory_of_programs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headway.policies.due_times._STAGES_MAX", 10)
    due = DueTimes()
    for number in range(100):
        due.ends_by(request(later=stage(1, None, 60.0, f"program {number}")))
    assert len(due._left) == 10
