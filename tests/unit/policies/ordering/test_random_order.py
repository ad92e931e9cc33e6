"""Random order: fixed by seed and id, fair otherwise."""

from __future__ import annotations

from headway.domain.request import Request
from headway.policies.ordering.random import Random


def lots(seed: int, count: int = 2000) -> list[float]:
    ordering = Random(seed=seed)
    return [ordering.rank(Request(i, float(i), 10)) for i in range(count)]


def test_same_seed_same_lots_whoever_else_came() -> None:
    assert lots(1) == lots(1)
    assert Random(seed=1).rank(Request(77, 0.0, 999, tenant="other")) == lots(1)[77]


def test_pinned_so_that_published_days_can_be_repeated() -> None:
    assert Random(seed=0).rank(Request("a", 0.0, 1)) == 0.3213759318070043
    assert Random(seed=0).rank(Request(0, 0.0, 1)) == 0.1709622343137528


def test_other_seed_other_order() -> None:
    first, second = lots(1), lots(2)
    agree = sum((a < b) == (c < d) for a, b, c, d in zip(first, first[1:], second, second[1:], strict=False))
    assert 0.4 < agree / len(first) < 0.6


def test_an_id_that_is_a_number_is_not_its_text() -> None:
    assert Random(seed=1).rank(Request(7, 0.0, 1)) != Random(seed=1).rank(Request("7", 0.0, 1))


def test_lots_spread_over_0_to_1() -> None:
    drawn = sorted(lots(3))
    assert all(abs(lot - (i + 0.5) / len(drawn)) < 0.04 for i, lot in enumerate(drawn))  # Kolmogorov–Smirnov, p < 1e-2
    assert 0 <= drawn[0] <= drawn[-1] < 1
