"""Counters, gauges and histograms as Prometheus reads them, whatever their labels hold."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families as parsed
from prometheus_client.samples import Sample

from headway.gateway.observing.prometheus_text import (
    SECONDS,
    BucketHistogram,
    HistogramFamily,
    counter,
    gauge,
    label_text,
)


def samples(text: str) -> list[Sample]:
    return [sample for family in parsed(text) for sample in family.samples]


@given(st.lists(st.floats(0, 1000) | st.sampled_from(SECONDS)), st.booleans())
def test_a_bucket_holds_the_observations_up_to_its_bound(seconds: list[float], is_labelled: bool) -> None:
    family, histogram = HistogramFamily("x_seconds", "X"), BucketHistogram()
    for observed in seconds:
        histogram.observe(observed)
    read = samples(family.head + family.lines(histogram, 'who="me"' if is_labelled else ""))
    assert len(read) == (len(SECONDS) + 3 if seconds else 0)
    for sample in read:
        assert sample.labels.get("who") == ("me" if is_labelled else None)
        if sample.name == "x_seconds_bucket":
            assert sample.value == sum(observed <= float(sample.labels["le"]) for observed in seconds)
        elif sample.name == "x_seconds_sum":
            assert sample.value == histogram.sum
        else:
            assert (sample.name, sample.value) == ("x_seconds_count", len(seconds))
    assert all(bisect_left(SECONDS, bound) == at for at, bound in enumerate(SECONDS))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), max_size=20))
def test_any_label_value_is_read_as_it_was_written(value: str) -> None:
    assert [sample.labels for sample in samples(gauge("g", "G", [({"a": value, "b": "100%"}, 1.5)]))] == [
        {"a": value, "b": "100%"}
    ]
    family, histogram = HistogramFamily("h", "H"), BucketHistogram()
    histogram.observe(1.0)
    for sample in samples(family.head + family.lines(histogram, label_text({"a": value}))):
        assert sample.labels["a"] == value


def test_a_counter_and_a_gauge_without_labels() -> None:
    assert [(s.name, s.value) for s in samples(counter("c", "C", [({}, 3)]) + gauge("g", "G", [({}, True)]))] == [
        ("c_total", 3.0),
        ("g", 1.0),
    ]
