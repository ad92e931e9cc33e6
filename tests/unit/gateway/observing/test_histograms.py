"""Histograms and counters as Prometheus reads them."""

from __future__ import annotations

from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.observing.histograms import SECONDS, BucketHistograms, Counters


@given(st.lists(st.floats(0, 1000) | st.sampled_from(SECONDS)))
def test_buckets_hold_whoever_is_at_most_their_bound(seconds: list[float]) -> None:
    spreads = BucketHistograms("x_seconds", "X", ["who"])
    for one in seconds:
        spreads["me",].observe(one)
    samples = [sample for family in spreads.collect() for sample in family.samples]
    for sample in samples:
        if sample.name == "x_seconds_bucket":
            assert sample.value == sum(one <= float(sample.labels["le"]) for one in seconds)
    assert len(samples) == (len(SECONDS) + 3 if seconds else 0)
    assert all(bisect_left(SECONDS, bound) == at for at, bound in enumerate(SECONDS))


def test_a_tally_counts_by_labels() -> None:
    tallies = Counters("things", "Things", ["kind"])
    tallies["a",] += 2
    tallies["b",] += 1
    found = {sample.labels["kind"]: sample.value for family in tallies.collect() for sample in family.samples}
    assert found == {"a": 2, "b": 1}
    assert tallies["c",] == 0
    assert len(tallies) == 2
