"""Headers about budgets, in OpenAI's spelling and in Anthropic's."""

from __future__ import annotations

from typing import Any

import pytest

from headway.gateway.budgets.key_budget import KeyBudget
from headway.gateway.budgets.rate_limit_headers import EVERY_NAME, anthropic_headers, duration, rate_limit_headers
from headway.gateway.settings import BudgetSettings


@pytest.mark.parametrize(
    ("microseconds", "written"),
    [
        (0, b"0s"),
        (1, b"1ms"),
        (17_000, b"17ms"),
        (999_001, b"1s"),
        (1_000_000, b"1s"),
        (1_000_001, b"2s"),
        (60_000_000, b"1m0s"),
        (360_000_000, b"6m0s"),
        (86_399_000_000, b"23h59m59s"),
        (90_061_000_000, b"25h1m1s"),
    ],
)
def test_times_as_openai_writes_them(microseconds: int, written: bytes) -> None:
    assert duration(microseconds) == written


def test_of_each_unit_the_limit_with_less_left_is_told() -> None:
    budget = KeyBudget[Any](BudgetSettings(requests_per_minute=60, requests_per_day=61, tokens_per_day=86_400))
    for _ in range(2):
        budget.debit(30, 0)
    assert rate_limit_headers(budget, 0) == (
        (b"x-ratelimit-limit-requests", b"60"),
        (b"x-ratelimit-remaining-requests", b"58"),
        (b"x-ratelimit-reset-requests", b"2s"),
        (b"x-ratelimit-limit-tokens", b"86400"),
        (b"x-ratelimit-remaining-tokens", b"86340"),
        (b"x-ratelimit-reset-tokens", b"1m0s"),
    )
    assert anthropic_headers(budget, 0, lambda: 1_700_000_000.25) == (
        (b"anthropic-ratelimit-requests-limit", b"60"),
        (b"anthropic-ratelimit-requests-remaining", b"58"),
        (b"anthropic-ratelimit-requests-reset", b"2023-11-14T22:13:23Z"),
        (b"anthropic-ratelimit-tokens-limit", b"86400"),
        (b"anthropic-ratelimit-tokens-remaining", b"86340"),
        (b"anthropic-ratelimit-tokens-reset", b"2023-11-14T22:14:21Z"),
    )


def test_a_reset_beyond_all_dates_is_the_last_of_them() -> None:
    budget = KeyBudget[Any](BudgetSettings(tokens_per_day=10_000_000))
    budget.debit(5_000_000, 0)
    budget.change(BudgetSettings(tokens_per_day=1), 0)
    told = dict(anthropic_headers(budget, 0, lambda: 1_700_000_000.0))
    assert told[b"anthropic-ratelimit-tokens-reset"] == b"9999-12-31T23:59:59Z"


def test_a_unit_without_a_limit_is_not_named() -> None:
    assert rate_limit_headers(KeyBudget[Any](BudgetSettings(concurrent_requests=1)), 0) == ()


def test_every_name_that_is_written_is_listed() -> None:
    budget = KeyBudget[Any](BudgetSettings(requests_per_minute=60, tokens_per_day=86_400))
    written = rate_limit_headers(budget, 0) + anthropic_headers(budget, 0, lambda: 0.0)
    assert sorted(name for name, _ in written) == sorted(EVERY_NAME)
