"""Laws of the token bucket, on a clock of our own that may also go back."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.gateway.budgets.token_bucket import DAY_US, MINUTE_US, TokenBucket
from headway.testing.examples import examples

LIMITS = st.integers(1, 50) | st.integers(1, 10**15)
WINDOWS = st.sampled_from([1, 7, MINUTE_US, DAY_US])
STEPS = st.lists(st.tuples(st.integers(0, 2 * DAY_US) | st.integers(0, 10), st.integers(1, 60)), max_size=30)


@settings(deadline=None, max_examples=examples(60))
@given(LIMITS, WINDOWS, STEPS)
def test_in_any_time_no_more_is_granted_than_the_bucket_and_what_came_back(
    limit: int, window_us: int, steps: list[tuple[int, int]]
) -> None:
    bucket, now_us = TokenBucket(limit, window_us), 0
    granted: list[tuple[int, int]] = []
    for passed_us, share in steps:
        now_us += passed_us
        tokens = max(1, limit * share // 60)
        if bucket.wait_us(tokens, now_us) == 0:
            bucket.take(tokens, now_us)
            granted.append((now_us, tokens))
    for first, (since_us, _) in enumerate(granted):
        total = 0
        for at_us, tokens in granted[first:]:
            total += tokens
            assert total <= limit + Fraction(limit * (at_us - since_us), window_us)


@settings(deadline=None, max_examples=examples(60))
@given(LIMITS, WINDOWS, STEPS, st.lists(st.integers(-(10**9), 10**9), max_size=30))
def test_it_agrees_with_exact_fractions_whatever_is_taken_and_given_back(
    limit: int, window_us: int, steps: list[tuple[int, int]], amounts: list[int]
) -> None:
    """`taken` of the model is exact; the clock also goes back, and then stands still."""
    bucket, now_us, seen_us, taken = TokenBucket(limit, window_us), 0, 0, Fraction(0)
    for (passed_us, back), amount in zip(steps, amounts, strict=False):
        now_us += passed_us if back % 5 else -passed_us
        if now_us > seen_us:
            taken, seen_us = max(Fraction(0), taken - Fraction(limit * (now_us - seen_us), window_us)), now_us
        taken = max(Fraction(0), taken + amount)
        (bucket.take if amount > 0 else bucket.give_back)(abs(amount), now_us)
        assert Fraction(bucket.state(now_us), window_us) == taken
        left = limit - taken
        assert bucket.balance(now_us) == max(0, left.numerator // left.denominator)


@settings(deadline=None, max_examples=examples(60))
@given(LIMITS, WINDOWS, st.integers(0, 10**16), st.integers(1, 10**15))
def test_who_waits_as_told_may_take_and_not_a_microsecond_before(
    limit: int, window_us: int, taken: int, tokens: int
) -> None:
    tokens = min(tokens, limit)
    bucket = TokenBucket(limit, window_us)
    bucket.take(taken, 0)
    wait_us = bucket.wait_us(tokens, 0)
    assert bucket.wait_us(tokens, wait_us) == 0
    assert bucket.balance(wait_us) >= tokens
    if wait_us:
        fresh = TokenBucket(limit, window_us)
        fresh.take(taken, 0)
        assert fresh.balance(wait_us - 1) < tokens


def test_a_debt_comes_back_before_the_balance_rises() -> None:
    bucket = TokenBucket(60, MINUTE_US)
    bucket.take(60, 0)
    bucket.take(30, 0)  # a correction
    assert bucket.balance(0) == 0
    assert bucket.balance(30_000_000) == 0
    assert bucket.balance(31_000_000) == 1
    bucket.give_back(1_000, 31_000_000)
    assert bucket.balance(31_000_000) == 60
