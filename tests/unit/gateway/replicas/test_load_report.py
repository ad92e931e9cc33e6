"""Load reports are read from the metrics and the load header of every engine, and never raise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas.load_report import LoadReport, read_load_header, read_metrics


def test_metrics_of_every_engine_are_read() -> None:
    vllm = (
        "# TYPE vllm:num_requests_waiting gauge\n"
        'vllm:num_requests_waiting{engine="0"} 3.0\nvllm:num_requests_waiting{engine="1"} 4.0\n'
        'vllm:num_requests_running{engine="0"} 5.0\nvllm:gpu_cache_usage_perc{engine="0"} 0.25\n'
        'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="1000"} 1.0\n'
    )
    assert read_metrics(vllm) == LoadReport(7, 5, 0.25, 16_000)
    sglang = (
        "sglang:num_queue_reqs 2\nsglang:num_running_reqs 9\nsglang:token_usage 0.5\nsglang:max_total_num_tokens 800\n"
    )
    assert read_metrics(sglang) == LoadReport(2, 9, 0.5, 800)
    trtllm = "trtllm_num_requests_waiting 1\ntrtllm_num_requests_running 2\ntrtllm_kv_cache_utilization 0.75\n"
    assert read_metrics(trtllm) == LoadReport(1, 2, 0.75, None)
    triton = (
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3\n'
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 4\n'
        'nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.5\n'
        'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 900\n'
    )
    assert read_metrics(triton) == LoadReport(3, 4, 0.5, None)
    assert read_metrics("vllm:num_requests_waiting NaN\nvllm:num_requests_running x\nother 1") == LoadReport()
    assert read_metrics("vllm:num_requests_waiting +Inf\nsglang:max_total_num_tokens Inf") == LoadReport()


@pytest.mark.parametrize(
    ("value", "report"),
    [
        (b'JSON {"named_metrics":{"kv_cache_usage_perc":0.4,"num_requests_waiting":2}}', LoadReport(2, None, 0.4)),
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0",
            LoadReport(2, None, 0.4),
        ),
        (b"JSON {", None),
        (b"JSON []", None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1e999,"kv_cache_usage_perc":0.4}}', LoadReport(kv_share=0.4)),
        (b'JSON {"named_metrics":{"num_requests_waiting":NaN}}', None),
        (b'JSON {"named_metrics":{"num_requests_waiting":1' + b"0" * 400 + b"}}", None),
        (b"JSON " + b"[" * 100_000, None),
        (b"TEXT named_metrics.num_requests_waiting=1e999", None),
        (b"TEXT named_metrics.num_requests_waiting=-3", None),
        (b"cpu_utilization=0.1", None),
    ],
)
def test_load_headers(value: bytes, report: LoadReport | None) -> None:
    assert read_load_header(value) == report


@given(st.text(max_size=200))
def test_reports_never_raise(text: str) -> None:
    read_metrics("vllm:" + text)
    read_load_header(text.encode("latin-1", "replace"))
