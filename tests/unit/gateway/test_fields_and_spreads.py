"""Fields written into a body, whatever the client wrote there; histograms as Prometheus reads them."""

from __future__ import annotations

import json
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.observing.histograms import SECONDS, BucketHistograms, Counters
from headway.gateway.openai.request_body import with_fields, with_usage_asked

NAMES = st.sampled_from(["model", "priority", "stream_options", "prompt", "é"])
VALUES = st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.dictionaries(NAMES, st.integers())


@given(st.dictionaries(NAMES, VALUES), st.dictionaries(NAMES, st.integers(), min_size=1), st.booleans(), st.booleans())
def test_ours_win_and_the_rest_stays(
    body: dict[str, object], changes: dict[str, object], escaped: bool, spaced: bool
) -> None:
    written = json.dumps(body, ensure_ascii=escaped, indent=1 if spaced else None).encode() + b" \n" * spaced
    assert json.loads(with_fields(written, changes)) == {**body, **changes}


def test_what_is_not_touched_keeps_its_bytes() -> None:
    assert with_fields(b'{"a" : 1.0,\n"b":[ ]} ', {"c": 1}) == b'{"a" : 1.0,\n"b":[ ],"c":1}'
    assert with_fields(b" { } ", {"c": 1}) == b' { "c":1}'


@pytest.mark.parametrize("name", [b'"priority"', rb'"priorit\u0079"', rb'"\u0070riority"'])
def test_a_name_in_disguise_is_replaced_too(name: bytes) -> None:
    made = with_fields(b'{"prompt":"x",%b:-100}' % name, {"priority": 0})
    assert json.loads(made, object_pairs_hook=list) == [("prompt", "x"), ("priority", 0)]


def test_stream_options_are_kept_beside_ours() -> None:
    written = rb'{"stream":true,"stream\u005foptions":{"chunk":1}}'
    changed = with_fields(written, with_usage_asked(written))
    assert json.loads(changed) == {"stream": True, "stream_options": {"chunk": 1, "include_usage": True}}
    assert with_usage_asked(b'{"stream_options":null}') == {"stream_options": {"include_usage": True}}


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
