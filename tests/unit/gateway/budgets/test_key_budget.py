"""The budget of one tenant: what it debits, what it gives back, when it says to come again, and what it keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.budgets.key_budget import KeyBudget, Shortage
from headway.gateway.budgets.saved_budgets import restore, saved_in_steps
from headway.gateway.budgets.token_bucket import DAY_US
from headway.gateway.settings import BudgetSettings
from headway.testing.examples import examples

LIMIT = st.none() | st.integers(1, 1_000)
BUDGETS = st.builds(
    BudgetSettings,
    requests_per_minute=LIMIT,
    requests_per_day=LIMIT,
    tokens_per_minute=LIMIT,
    tokens_per_day=LIMIT,
)
REQUESTS = st.lists(
    st.tuples(st.integers(0, 90_000_000), st.integers(0, 400), st.floats(0, 2_000), st.integers(0, 3_000)), max_size=25
)
Budget = KeyBudget[Any]


@settings(deadline=None, max_examples=examples(60))
@given(BUDGETS, REQUESTS)
def test_who_comes_back_when_told_to_is_within(
    chosen: BudgetSettings, requests: list[tuple[int, int, float, int]]
) -> None:
    """Each of the requests that are let in ends at once, with more or fewer tokens than predicted."""
    budget, now_us = Budget(chosen), 0
    for passed_us, prompt, output, used in requests:
        now_us += passed_us
        tokens = budget.charge(prompt, output)
        if tokens is None:
            assert prompt > min(limit for limit in (chosen.tokens_per_minute, chosen.tokens_per_day) if limit)
            continue
        early = budget.shortage_of_any(now_us)
        shortage = budget.shortage(tokens, now_us)
        if early is not None:
            assert shortage is not None, "what is refused by its head would be refused with its body"
            assert (early.wait_us or 0) >= (shortage.wait_us or 0), "no request so far would come too early"
        if shortage is not None:
            assert shortage.wait_us
            assert not budget.debit_if_within(tokens, now_us)
            now_us += shortage.wait_us
            assert budget.shortage(tokens, now_us) is None
        assert budget.debit_if_within(tokens, now_us)
        budget.correct(tokens, used, now_us)
    assert budget.inside == 0


@settings(deadline=None, max_examples=examples(50))
@given(BUDGETS, REQUESTS)
def test_a_refund_leaves_no_trace_and_corrections_are_exact(
    chosen: BudgetSettings, requests: list[tuple[int, int, float, int]]
) -> None:
    predicted, actual = Budget(chosen), Budget(chosen)
    for _, prompt, output, used in requests:
        tokens = predicted.charge(prompt, output) or 0
        before = predicted.state(0)
        predicted.debit(tokens, 0)
        predicted.refund(tokens, 0)
        assert predicted.state(0) == before
        predicted.debit(tokens, 0)
        predicted.correct(tokens, used, 0)
        actual.debit(used, 0)
    assert predicted.state(0) == actual.state(0)


@settings(deadline=None, max_examples=examples(50))
@given(BUDGETS, REQUESTS, st.integers(0, 3 * DAY_US), st.integers(-(10**15), 10**15))
def test_a_restart_equals_no_restart(
    chosen: BudgetSettings, requests: list[tuple[int, int, float, int]], off_us: int, boot_us: int
) -> None:
    """The process is away for `off_us`; its clock begins anywhere afterwards, the calendar's goes on."""
    stays, now_us = Budget(chosen), 0
    for passed_us, prompt, output, _ in requests:
        now_us += passed_us
        stays.debit(stays.charge(prompt, output) or 0, now_us)
    unix_us = 1_700_000_000_000_000
    (saved,) = saved_in_steps({"a": stays}, lambda: (now_us, unix_us))
    comes = Budget(chosen)
    restore({"a": comes}, saved, boot_us, unix_us + off_us)
    assert comes.state(boot_us) == stays.state(now_us + off_us)


def test_a_calendar_that_was_set_back_gives_nothing_and_one_set_forward_no_more_than_all() -> None:
    chosen = BudgetSettings(tokens_per_day=1_000)
    used = Budget(chosen)
    used.debit(900, 0)
    (saved,) = saved_in_steps({"a": used}, lambda: (0, DAY_US))
    for unix_us, left in ((0, 100), (DAY_US, 100), (1_000 * DAY_US, 1_000)):
        comes = Budget(chosen)
        restore({"a": comes}, saved, 5, unix_us)
        assert comes.tightest(5)[1].balance(5) == left  # type: ignore[union-attr]


def test_other_limits_keep_what_was_used() -> None:
    budget = Budget(BudgetSettings(requests_per_minute=10, tokens_per_minute=100))
    budget.debit(60, 0)
    budget.change(replace(budget.settings, requests_per_minute=None, tokens_per_minute=50), 0)
    assert budget.shortage(1, 0) == Shortage("tokens_per_minute", 13_200_000)  # 60 of 50 are taken: a debt of 10
    assert budget.inside == 1
    budget.change(replace(budget.settings, tokens_per_minute=200), 0)
    assert budget.shortage(140, 0) is None
    assert budget.shortage(141, 0) is not None


def test_requests_at_once_end_before_others_come() -> None:
    budget = Budget(BudgetSettings(concurrent_requests=2))
    assert budget.charge(10**9, 1e30) == 0, "tokens are not limited"
    for _ in range(2):
        assert budget.shortage(0, 0) is None
        budget.debit(0, 0)
    assert budget.shortage(0, 0) == Shortage("concurrent_requests", None)
    budget.refund(0, 0)
    assert budget.shortage(0, 0) is None


@pytest.mark.parametrize(
    "saved",
    [
        [],
        {"a": 3},
        {"a": {"taken": {"tokens_per_day": 1.5}, "unix_us": 1}},
        {"a": {"taken": {"tokens_per_day": -1}, "unix_us": 1}},
        {"a": {"taken": {"tokens_per_day": True}, "unix_us": 1}},
        {"a": {"taken": {"tokens_per_day": 10**40}, "unix_us": 1}},
        {"a": {"taken": {}}},
        {"a": {"unix_us": 1}},
    ],
)
def test_a_state_that_makes_no_sense_is_one_sentence_and_changes_nothing(saved: object) -> None:
    budget = Budget(BudgetSettings(tokens_per_day=10))
    budget.debit(4, 0)
    with pytest.raises(ValueError, match="budget"):
        restore({"a": budget}, saved, 0, 0)
    assert budget.tightest(0)[1].balance(0) == 6  # type: ignore[union-attr]


def test_many_tenants_are_saved_in_steps_and_those_without_a_budget_passed_over() -> None:
    budgets = {f"t{number}": Budget(BudgetSettings(requests_per_day=5)) for number in range(1_200)}
    for budget in budgets.values():
        budget.debit(0, 0)
    steps = list(saved_in_steps(budgets, lambda: (0, 0)))
    assert [len(step) for step in steps] == [500, 500, 200]
    whole = {name: entry for step in steps for name, entry in step.items()}
    fresh = {"t7": Budget(BudgetSettings(requests_per_day=5))}
    restore(fresh, whole | {"gone": whole["t8"]}, 0, 0)
    assert fresh["t7"].tightest(0)[0].balance(0) == 4  # type: ignore[union-attr]
