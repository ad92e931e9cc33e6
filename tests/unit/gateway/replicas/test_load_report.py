"""The load header of an answer is read in every form, and never raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas.load_report import LoadReport, read_load_header


@pytest.mark.parametrize(
    ("value", "report"),
    [
        (b'JSON {"named_metrics":{"kv_cache_usage_perc":0.4,"num_requests_waiting":2}}', LoadReport(2, None, 0.4)),
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0",
            LoadReport(2, None, 0.4),
        ),
        (b"TEXT named_metrics.kv_cache_usage_perc=1e9", LoadReport(kv_share=1.0)),
        (b"JSON {", None),
        (b"JSON []", None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1e999,"kv_cache_usage_perc":0.4}}', LoadReport(kv_share=0.4)),
        (b'JSON {"named_metrics":{"num_requests_waiting":NaN}}', None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1' + b"0" * 400 + b"}}", None),
        (b"JSON " + b"[" * 100_000, None),
        (b"TEXT named_metrics.num_requests_waiting=1e999", None),
        (b"TEXT named_metrics.num_requests_waiting=-3", None),
        (b"TEXT named_metrics.num_requests_waiting=1e16", None),
        (b"cpu_utilization=0.1", None),
    ],
)
def test_load_headers(value: bytes, report: LoadReport | None) -> None:
    assert read_load_header(value) == report


@given(st.text(max_size=200))
def test_reports_never_raise(text: str) -> None:
    read_load_header(text.encode("latin-1", "replace"))
