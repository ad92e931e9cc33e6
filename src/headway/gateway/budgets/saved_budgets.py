"""What budgets keep over a restart: how much of each limit was taken, and when that was true.

Laws: a restart equals no restart, if the calendar's clock runs on; one that was set back gives nothing, one that was
set forward at most what fills the limits. No key is in it, only names of tenants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from headway.gateway.budgets.key_budget import KeyBudget

_TENANTS_A_STEP = 500
_TAKEN_MAX = 10**30  # x microseconds: far above any debt, and no burden


def saved_in_steps(
    budgets: Mapping[str, KeyBudget[Any]], times_us: Callable[[], tuple[int, int]]
) -> Iterator[dict[str, dict[str, object]]]:
    """The state by tenant, some tenants at a step; those that have used nothing are left out.

    `times_us` gives now, of the budgets' clock and of the calendar's, in microseconds.
    """
    step: dict[str, dict[str, object]] = {}
    for number, (name, budget) in enumerate(list(budgets.items()), 1):
        now_us, unix_us = times_us()
        taken = budget.state(now_us)
        if taken:
            step[name] = {"taken": taken, "unix_us": unix_us}
        if not number % _TENANTS_A_STEP:
            yield step
            step = {}
    yield step


def restore(budgets: Mapping[str, KeyBudget[Any]], saved: object, now_us: int, unix_us: int) -> None:
    """Take the state back into fresh budgets; tenants that have none now are passed over.

    Raises:
        ValueError: a part is missing or of another kind; nothing was taken back.
    """
    if not isinstance(saved, Mapping):
        raise ValueError("budgets are no table")
    read = {name: _read(entry) for name, entry in saved.items()}
    for name, (taken, saved_at_us) in read.items():
        budget = budgets.get(name)
        if budget is not None:
            # As if it had been so when it was saved: what came back since then is found by the first look at it.
            passed_us = max(0, unix_us - saved_at_us)
            budget.change(budget.settings, now_us - passed_us, taken)


def _read(entry: object) -> tuple[dict[str, int], int]:
    if not isinstance(entry, Mapping):
        raise ValueError("the budget of a tenant is no table")
    taken, unix_us = entry.get("taken"), entry.get("unix_us")
    if not isinstance(taken, Mapping) or not all(_is_count(value) for value in (*taken.values(), unix_us)):
        raise ValueError("the budget of a tenant lacks `taken` or `unix_us`, or has no whole numbers there")
    return dict(taken), unix_us  # type: ignore[return-value]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _TAKEN_MAX
