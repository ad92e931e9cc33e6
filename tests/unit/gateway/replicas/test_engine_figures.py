"""Every engine's own text is read: what adds up is added, what repeats is counted once, and nothing raises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.replicas.engine_figures import ENGINES, read_metrics
from headway.gateway.replicas.load_report import LoadReport

# In the form in which each engine writes them: HELP and TYPE, its labels, histograms beside the gauges.
VLLM = """# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 5.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 3.0
vllm:num_requests_waiting{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="1000",sliding_window="None"} 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="1",num_gpu_blocks="1000",sliding_window="None"} 1.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_total{engine="1",model_name="m"} 3.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:iteration_tokens_total_bucket{engine="0",le="1.0",model_name="m"} 50.0
vllm:iteration_tokens_total_count{engine="0",model_name="m"} 100.0
vllm:iteration_tokens_total_count{engine="1",model_name="m"} 201.0
vllm:iteration_tokens_total_sum{engine="0",model_name="m"} 9000.0
"""
SGLANG = """# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 9.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 2.0
sglang:token_usage{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 0.5
sglang:max_total_num_tokens{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 800.0
sglang:num_retracted_reqs{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 1.0
sglang:num_retracted_requests_total{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="0"} 6.0
sglang:num_retracted_requests_total{engine_type="unified",model_name="m",moe_ep_rank="0",pp_rank="0",tp_rank="1"} 6.0
"""
TENSORRT_LLM = """# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{engine_type="trtllm",model_name="m"} 2.0
trtllm_num_requests_waiting{engine_type="trtllm",model_name="m"} 1.0
trtllm_kv_cache_utilization{engine_type="trtllm",model_name="m"} 0.75
trtllm_kv_cache_max_blocks{engine_type="trtllm",model_name="m"} 100.0
trtllm_kv_cache_tokens_per_block{engine_type="trtllm",model_name="m"} 32.0
trtllm_e2e_request_latency_seconds_count{engine_type="trtllm",model_name="m"} 40.0
"""
TRITON = """nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 4
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="tensorrt_llm",version="1"} 0.5
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="tensorrt_llm",version="1"} 900
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="tensorrt_llm",version="1"} 1800
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="tensorrt_llm",version="1"} 64
nv_trt_llm_general_metrics{general_type="iteration_counter",model="tensorrt_llm",version="1"} 77
nv_trt_llm_general_metrics{general_type="timestamp",model="tensorrt_llm",version="1"} 1700000000
"""
PUBLISHED = {
    "vLLM": (VLLM, LoadReport(7, 6, 0.5, 32_000, preemptions=5, steps=150.5)),
    "SGLang": (SGLANG, LoadReport(2, 9, 0.5, 800, preemptions=6)),
    "TensorRT-LLM": (TENSORRT_LLM, LoadReport(1, 2, 0.75, 3_200)),
    "Triton": (TRITON, LoadReport(3, 4, 0.5, 115_200, steps=77.0)),
}


@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_text_of_every_engine_is_read(engine: str) -> None:
    text, report = PUBLISHED[engine]
    assert read_metrics(text) == report


def test_an_older_vllm_names_its_cache_otherwise() -> None:
    assert read_metrics('vllm:gpu_cache_usage_perc{engine="0"} 0.25\n').kv_share == 0.25


def sglang(name: str, values: dict[str, float]) -> str:
    return "".join(f"sglang:{name}{{{labels}}} {value}\n" for labels, value in values.items())


@pytest.mark.parametrize(
    ("values", "running"),
    [
        ({'priority="",tp_rank="0"': 14, 'priority="0",tp_rank="0"': 10, 'priority="5",tp_rank="0"': 4}, 14),
        ({'priority="0",tp_rank="0"': 10, 'priority="5",tp_rank="0"': 4}, 14),  # no total: the parts are all there is
        ({f'tp_rank="{rank}"': 6 for rank in range(8)}, 6),
        ({f'tp_rank="{rank}",pp_rank="{stage}"': 6 for rank in range(4) for stage in range(2)}, 6),
        ({'dp_rank="0",tp_rank="0"': 5, 'dp_rank="1",tp_rank="0"': 7}, 12),
        ({'dp_rank="0",tp_rank="0"': 5, 'dp_rank="0",tp_rank="1"': 5, 'dp_rank="1",tp_rank="2"': 7}, 12),
        ({'dp_rank="0",priority=""': 5, 'dp_rank="0",priority="1"': 5, 'dp_rank="1",priority=""': 7}, 12),
    ],
)
def test_a_request_of_sglang_counts_once_whatever_labels_repeat_it(values: dict[str, float], running: int) -> None:
    report = read_metrics(sglang("num_running_reqs", values) + sglang("max_total_num_tokens", values))
    assert (report.running, report.kv_tokens_max) == (running, running)


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "x", "1e16", "1" + 400 * "0", ""])
def test_what_is_no_figure_is_none(value: str) -> None:
    assert read_metrics(f"vllm:num_requests_waiting {value}\nsglang:max_total_num_tokens {value}\n") == LoadReport()


def test_the_sizes_of_a_cache_are_bounded_too() -> None:
    huge = 'vllm:cache_config_info{block_size="%s",num_gpu_blocks="%s"} 1\n'
    assert read_metrics(huge % ("9" * 5_000, "9" * 5_000)) == LoadReport()
    assert (read_metrics(huge % ("9" * 15, "9" * 15)).kv_tokens_max or 0) <= 1e15


@given(st.text(max_size=200))
def test_reading_never_raises(text: str) -> None:
    for start in ("vllm:num_requests_waiting", "sglang:num_running_reqs{", "trtllm_", ""):
        read_metrics(start + text)
