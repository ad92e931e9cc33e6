"""Confirmed prefixes: held from the answer that computed them until an answer denies them."""

from __future__ import annotations

import math

import pytest

from headway.gateway.replicas import confirmed_prefixes
from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes


def told() -> ConfirmedPrefixes:
    """It once counted cached tokens."""
    held = ConfirmedPrefixes()
    held.answered([], [], 1, 0, 5.0)
    return held


def test_a_replica_that_never_counted_cached_tokens_has_told_nothing() -> None:
    held = ConfirmedPrefixes()
    held.answered([1, 2], [100, 200], 0, 0, 5.0)
    assert held.tokens([1, 2], 300) is None
    assert held.as_of == -math.inf
    held.answered([1, 2], [100, 200], 200, 0, 6.0)
    assert held.tokens([1, 2], 300) == 200
    assert held.as_of == 6.0


def test_the_longest_prefix_counts_and_never_the_whole_prompt() -> None:
    held = told()
    held.answered([1, 2, 3], [100, 200, 300], 0, 0, 6.0)
    assert held.tokens([1, 2, 9], 1_000) == 200
    assert held.tokens([1, 2, 3], 300) == 299
    assert held.tokens([8, 9], 1_000) == 0
    assert held.tokens([], 0) == 0


def test_an_answer_that_denies_a_prefix_puts_all_older_ones_in_doubt() -> None:
    held = told()
    held.answered([1, 2], [100, 200], 0, 0, 6.0)
    held.answered([11, 12], [100, 200], 0, 0, 7.0)
    held.answered([21, 22], [100, 200], 0, 0, 8.0)
    held.answered([11, 12, 13], [100, 200, 300], 0, 200, 9.0)
    assert held.tokens([1, 2], 500) == 0
    assert held.tokens([11, 12, 13], 500) == 300, "it has just computed this one"
    assert held.tokens([21, 22], 500) == 200


def test_what_was_confirmed_in_the_meantime_is_not_denied() -> None:
    held = told()
    held.answered([1], [100], 0, 0, 6.0)
    held.answered([11, 12], [100, 200], 0, 0, 7.0)
    held.answered([11, 12], [100, 200], 0, 100, 8.0)
    assert held.tokens([1], 500) == 100
    held.answered([11, 12], [100, 200], 170, 200, 9.0)
    assert held.tokens([1], 500) == 100, "a cache holds whole blocks"


def test_the_least_recently_confirmed_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confirmed_prefixes, "PREFIXES_MAX", 3)
    held = told()
    held.answered([1, 2], [100, 200], 0, 0, 6.0)
    held.answered([3], [100], 0, 0, 7.0)
    held.answered([1, 4], [100, 200], 0, 0, 8.0)
    assert len(held) == 3
    assert [held.tokens([key], 500) for key in (1, 2, 3, 4)] == [100, 0, 100, 200]
