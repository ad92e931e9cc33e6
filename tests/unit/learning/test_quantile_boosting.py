"""Boosted quantiles: they learn what a histogram cannot, are swapped in when ready, and can be repeated."""

from __future__ import annotations

import math
import random
import time
from typing import Any

import pytest

from headway.domain.event import Arrived, Completed
from headway.domain.request import Request

pytest.importorskip("lightgbm", reason="the extra ml is not installed")

from headway.learning import quantile_boosting
from headway.learning.quantile_boosting import LEVELS, QuantileBoosting


def traffic(count: int, seed: int) -> list[tuple[Request, int]]:
    """A length that depends on tenant and prompt together: half the prompt for a, four times for b."""
    lots = random.Random(seed)
    drawn = []
    for number in range(count):
        request = Request(number, 0.0, lots.randint(50, 1_000), tenant=lots.choice("ab"), session=str(number % 7))
        factor = 0.5 if request.tenant == "a" else 4.0
        drawn.append((request, max(1, round(request.prompt_tokens * factor * math.exp(lots.gauss(0, 0.3))))))
    return drawn


def teach(predictor: QuantileBoosting, lessons: list[tuple[Request, int]]) -> None:
    for request, length in lessons:
        predictor.observe(Arrived(request, 0.0))
        predictor.observe(Completed(request, 0.0, length))


def test_it_learns_a_dependence_and_its_quantiles_hold() -> None:
    predictor = QuantileBoosting(refit_requests=1_500)
    teach(predictor, traffic(1_499, seed=1))
    assert not predictor.is_fitted
    teach(predictor, traffic(1, seed=2))
    assert not predictor.is_fitted, "an inline fit takes as if it took time"
    teach(predictor, traffic(150, seed=3))
    assert predictor.is_fitted
    fresh = traffic(600, seed=4)
    estimates = [predictor.predict(request) for request, _ in fresh]
    for level in LEVELS[1:5]:
        held = sum(
            length <= estimate.remaining_quantile(level, 0)
            for estimate, (_, length) in zip(estimates, fresh, strict=True)
        )
        assert held / len(fresh) == pytest.approx(level, abs=0.12)
    errors = [
        abs(math.log(estimate.remaining_quantile(0.5, 0) / length))
        for estimate, (_, length) in zip(estimates, fresh, strict=True)
    ]
    assert sum(errors) / len(errors) < 0.4  # 0.24 is what the noise leaves


def test_inline_training_can_be_repeated() -> None:
    said = []
    for _ in range(2):
        predictor = QuantileBoosting(refit_requests=300, trees=20)
        teach(predictor, traffic(400, seed=1))
        said.append([predictor.predict(request).remaining_quantile(0.9, 0) for request, _ in traffic(50, seed=9)])
    assert said[0] == said[1]


def test_background_training_is_swapped_in_when_it_is_done() -> None:
    predictor = QuantileBoosting(refit_requests=300, trees=20, training="background")
    lessons = traffic(5_000, seed=1)
    teach(predictor, lessons[:300])
    for lesson in lessons[300:]:
        teach(predictor, [lesson])
        if predictor.is_fitted:
            break
        time.sleep(0.005)
    assert predictor.is_fitted


def test_the_bound_cuts_it_off() -> None:
    predictor = QuantileBoosting(refit_requests=300, trees=20)
    teach(predictor, traffic(400, seed=1))
    bounded = Request(0, 0.0, 1_000, tenant="b", max_output_tokens=64)
    assert predictor.predict(bounded).remaining_quantile(0.99, 0) <= 64


def test_without_the_extra_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(quantile_boosting, "import_module", missing)
    with pytest.raises(ValueError, match=r"^it needs LightGBM: pip install 'headway\[ml\]'$"):
        QuantileBoosting()


def test_tenants_keep_their_numbers_while_they_come_and_the_forgotten_give_theirs_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantile_boosting, "_TENANTS_MAX", 10)
    features = quantile_boosting._Features()

    def number(tenant: str) -> float:
        return features.of(Request(0, 0.0, 10, tenant=tenant))[quantile_boosting.FEATURES.index("tenant")]

    regular = number("regular")
    for stranger in range(1_000):
        assert 0 <= number(f"stranger {stranger}") < 10
        assert number("regular") == regular
    assert len(features._tenants) == 10
    assert len(set(features._tenants.values())) == 10
