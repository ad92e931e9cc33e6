"""Series of the metrics are bounded, and no count is lost when one makes room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.observing.traffic_series import OTHER, BoundedLabels, SeriesByLabels

NAMES = st.tuples(st.sampled_from(["m0", "m1", "m2", "m3", ""]), st.integers(0, 12).map(str) | st.just(OTHER))


def test_values_of_a_label_are_bounded() -> None:
    bounded = BoundedLabels(100)
    assert {bounded(str(number)) for number in range(150)} == {*map(str, range(100)), OTHER}


@given(st.lists(NAMES, max_size=200), st.integers(1, 6))
def test_every_count_is_in_one_series_however_few_are_kept(names: list[tuple[str, str]], series_max: int) -> None:
    series = SeriesByLabels(series_max)
    for model, tenant in names:
        counted = series.of(model, tenant)
        counted.requests["completed", ""] += 1
        counted.queue.observe(1.0)
        counted.input_tokens += 2
    kept = series.all()
    assert len({one.labels for one in kept}) == len(kept) <= 2 * series_max + 1
    assert sum(one.requests["completed", ""] for one in kept) == len(names)
    assert sum(sum(one.queue.counts) for one in kept) == len(names)
    assert sum(one.input_tokens for one in kept) == 2 * len(names)


def test_a_tenant_that_comes_late_has_a_series_of_its_own_and_the_least_lately_used_goes() -> None:
    series = SeriesByLabels(3)
    for tenant in ("a", "b", "c", "a", "late"):
        series.of("m", tenant).requests["completed", ""] += 1
    labels = {one.labels: one.requests["completed", ""] for one in series.all()}
    assert labels == {
        'model_name="m",fairness_id="c"': 1,
        'model_name="m",fairness_id="a"': 2,
        'model_name="m",fairness_id="late"': 1,
        'model_name="m",fairness_id="other"': 1,
    }
