"""SVF and its 1-bit form: volumes and class lengths by hand and as published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.estimate import PointEstimate
from headway.domain.request import Request
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst, volume
from headway.policies.ordering.smallest_volume_first_1bit import SmallestVolumeFirst1bit, geometric_proxies


def request(prompt_tokens: int, output_tokens: int, produced: int = 0) -> Request:
    made = Request(0, 0.0, prompt_tokens, produced_tokens=produced)
    made.estimate = PointEstimate(output_tokens, "test")
    return made


def test_volume_of_100_and_50() -> None:
    assert volume(100, 50) == 6275
    assert SmallestVolumeFirst().rank(request(100, 50)) == 6275


@given(st.integers(0, 1000), st.integers(1, 300))
def test_volume_is_the_memory_held_summed_over_steps(prompt_tokens: int, output_tokens: int) -> None:
    held = sum(prompt_tokens + t for t in range(1, output_tokens + 1))
    assert volume(prompt_tokens, output_tokens) == held
    assert (prompt_tokens + output_tokens) * output_tokens < 2 * held


@given(st.integers(0, 1000), st.integers(2, 300), st.data())
def test_a_preempted_request_counts_what_is_still_ahead(prompt_tokens: int, output: int, data: st.DataObject) -> None:
    produced = data.draw(st.integers(1, output - 1))
    ahead = SmallestVolumeFirst().rank(request(prompt_tokens, output, produced))
    assert ahead == volume(prompt_tokens, output) - volume(prompt_tokens, produced)


def test_the_default_classes_are_the_papers_worst_case_for_a_context_of_65536() -> None:
    rank = SmallestVolumeFirst1bit().rank
    context = 65_536
    assert rank(request(10, round(context**0.5))) == volume(10, context**0.25)
    assert rank(request(10, round(context**0.5) + 1)) == volume(10, context**0.75)


def test_classes_are_not_tiers() -> None:
    rank = SmallestVolumeFirst1bit(threshold_tokens=100, short_tokens=50, long_tokens=200).rank
    tiny_but_long, huge_but_short = request(1, 1000), request(100_000, 1)
    assert rank(tiny_but_long) == 1 * 200 + (200 * 200 + 200) / 2
    assert rank(huge_but_short) == 100_000 * 50 + (50 * 50 + 50) / 2
    assert rank(tiny_but_long) < rank(huge_but_short)


def test_geometric_proxies_of_mean_100_threshold_100() -> None:
    proxies = geometric_proxies(100, 100)
    assert proxies.short_tokens == pytest.approx(42.263, abs=5e-4)
    assert proxies.long_tokens == 200
    assert proxies.penalty_volume == pytest.approx(1666.77, abs=5e-3)


@given(st.floats(2, 1000), st.integers(1, 1000))
def test_geometric_proxies_are_the_class_means(mean: float, threshold: int) -> None:
    """The law of total expectation gives the mean back."""
    proxies = geometric_proxies(mean, threshold)
    beyond = (1 - 1 / mean) ** threshold
    assert proxies.short_tokens * (1 - beyond) + proxies.long_tokens * beyond == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"threshold_tokens": 0.0}, "threshold_tokens must be above 0"),
        ({"short_tokens": 5000.0}, "below long_tokens"),
        ({"short_tokens": 0.0}, "short_tokens must be above 0"),
    ],
)
def test_senseless_classes_are_refused(options: dict[str, float], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        SmallestVolumeFirst1bit(**options)


@pytest.mark.parametrize(("mean", "threshold"), [(1.0, 5.0), (5.0, 0.0)])
def test_geometric_proxies_refuse_what_is_no_geometric_law(mean: float, threshold: float) -> None:
    with pytest.raises(ValueError, match="mean_output_tokens must be above 1"):
        geometric_proxies(mean, threshold)
