"""Which answers of a policy count as stalled, by hand-made clocks.

Times are in budgets of 1/64 s, which floats hold exactly; a strike counts for 5 s.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from headway.scheduling.checked_policies import PolicyFault
from headway.vllm_plugin.config import GuardLimits
from headway.vllm_plugin.policy_guard import PolicyTimer

BUDGET = 1 / 64


class Clocks:
    """Wall and CPU time, moved by what a policy costs."""

    def __init__(self, strikes: int = 2) -> None:
        self.wall = self.cpu = 0.0
        limits = GuardLimits(budget_ms=1000 * BUDGET, strikes=strikes, strike_seconds=5)
        self.timer = PolicyTimer(limits, lambda: self.wall, lambda: self.cpu)

    def cost(self, wall: float, cpu: float = 0.0) -> Callable[[], str]:
        def answer() -> str:
            self.wall += wall * BUDGET
            self.cpu += cpu * BUDGET
            return "answer"

        return answer

    def ask(self, wall: float, cpu: float = 0.0, *, kind: str = "ordering", per_step: bool = False) -> str:
        return self.timer.ask(kind, per_step, self.cost(wall, cpu))


def test_seconds_are_added_up_by_kind() -> None:
    clocks = Clocks()
    assert clocks.ask(0.25) == "answer"
    clocks.ask(0.5)
    clocks.ask(1.0, kind="admission")
    bound = clocks.timer.bound("prediction", False, clocks.cost(0.75))
    assert bound() == "answer"
    assert clocks.timer.total_seconds == {
        "ordering": 0.75 * BUDGET,
        "admission": BUDGET,
        "preemption": 0.0,
        "prediction": 0.75 * BUDGET,
    }


def test_what_a_policy_raises_is_a_fault_that_names_it() -> None:
    def slip() -> None:
        raise LookupError("a slip")

    with pytest.raises(PolicyFault, match="LookupError: a slip") as raised:
        Clocks().timer.ask("admission", False, slip)
    assert (raised.value.kind, raised.value.reason) == ("admission", "raised")


def test_an_answer_of_just_the_budget_is_in_time() -> None:
    clocks = Clocks(strikes=1)
    for _ in range(5):
        clocks.ask(1, 2)


def test_more_than_twenty_five_budgets_need_no_second_strike() -> None:
    Clocks().ask(25)
    with pytest.raises(
        PolicyFault, match=r"took 406\.2 ms where 15\.625 ms are allowed \(strike 1 within 5 s\)"
    ) as raised:
        Clocks().ask(26, kind="preemption")
    assert (raised.value.kind, raised.value.reason) == ("preemption", "stalled")


@pytest.mark.parametrize(
    ("wall", "cpu", "strikes"),
    [
        (2, 1.25, True),  # more than a budget of CPU time
        (2, 1, False),
        (10, 0, False),
        (11, 0, True),  # more than ten budgets of wall time: no busy machine explains it
    ],
)
def test_a_strike_needs_suspicion_and_proof(wall: float, cpu: float, strikes: bool) -> None:
    clocks = Clocks(strikes=1)
    clocks.ask(wall, cpu)  # the first raises suspicion only
    clocks.wall = 1.0
    if strikes:
        with pytest.raises(PolicyFault, match="within 5 s"):
            clocks.ask(wall, cpu)
    else:
        clocks.ask(wall, cpu)


@pytest.mark.parametrize(("later", "strikes"), [(4.75, True), (5.0, False)])
def test_suspicion_lasts_as_long_as_a_strike_counts(later: float, strikes: bool) -> None:
    clocks = Clocks(strikes=1)
    clocks.ask(2, 2)  # it began at 0
    clocks.wall = later
    if strikes:
        with pytest.raises(PolicyFault):
            clocks.ask(2, 2)
    else:
        clocks.ask(2, 2)


@pytest.mark.parametrize(("last", "out"), [(8.0, True), (8.25, False)])
def test_strikes_are_forgotten_after_their_time(last: float, out: bool) -> None:
    clocks = Clocks(strikes=2)
    clocks.ask(2, 2)  # suspicion, at 0
    clocks.wall = 3.0
    clocks.ask(2, 2)  # a strike
    clocks.wall = 7.0
    clocks.ask(2, 0)  # no proof, but the suspicion goes on
    clocks.wall = last
    if out:
        with pytest.raises(PolicyFault, match=r"\(strike 2 within 5 s\)"):
            clocks.ask(2, 2)
    else:
        clocks.ask(2, 2)


def test_the_choices_of_one_step_are_judged_together() -> None:
    clocks = Clocks(strikes=1)
    clocks.ask(2, 2)  # suspicion
    for _ in range(2):
        clocks.ask(0.5, 0.5, per_step=True)
        clocks.ask(0.5, 0.5, per_step=True, kind="admission")
        clocks.ask(0.75, 0.75)  # not a choice: it is judged by itself
        clocks.timer.end_step()
    clocks.ask(0.5, 0.5, per_step=True)
    clocks.ask(0.75, 0.75, per_step=True, kind="admission")
    with pytest.raises(PolicyFault, match=r"took 19\.5 ms") as raised:
        clocks.timer.end_step()
    assert raised.value.kind == "admission", "the last that was asked"


def test_a_choice_that_was_judged_by_itself_is_not_judged_again_with_its_step() -> None:
    clocks = Clocks(strikes=2)
    clocks.ask(2, 2, per_step=True)  # suspicion
    clocks.timer.end_step()
    clocks.ask(2, 2, per_step=True)  # one strike
    clocks.timer.end_step()
    clocks.ask(0.75, 0.75, per_step=True)
    clocks.timer.end_step()
