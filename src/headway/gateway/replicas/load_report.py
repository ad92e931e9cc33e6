"""Load reports of engines: their Prometheus metrics and the load header of an answer, under all known names."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

_WAITING = ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "trtllm_num_requests_waiting", "triton waiting")
_RUNNING = ("vllm:num_requests_running", "sglang:num_running_reqs", "trtllm_num_requests_running", "triton running")
_KV_SHARE = (
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",
    "sglang:token_usage",
    "trtllm_kv_cache_utilization",
    "triton kv",
)
_BY_LABEL = {  # Triton's TensorRT-LLM back end: one name for many figures
    ("nv_trt_llm_request_metrics", "request_type", "waiting"): "triton waiting",
    ("nv_trt_llm_request_metrics", "request_type", "scheduled"): "triton running",
    ("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "fraction"): "triton kv",
}
_CONFIG = "vllm:cache_config_info"
_SGLANG_TOKENS = "sglang:max_total_num_tokens"
_PLUGIN = "headway_steps_total"  # of Headway's plug-in, in vLLM's own metrics
_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class LoadReport:
    """One replica's own figures, None where it reports none. `reads_hints`: Headway's plug-in schedules there."""

    waiting: int | None = None
    running: int | None = None
    kv_share: float | None = None
    kv_tokens_max: int | None = None
    reads_hints: bool = False


def read_metrics(text: str) -> LoadReport:
    """The figures in a Prometheus text; several engines behind one address (data parallel) are summed."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    blocks = 0
    wanted = {*_WAITING, *_RUNNING, *_KV_SHARE, _SGLANG_TOKENS}
    for line in text.splitlines():
        if not line.startswith(("vllm:", "sglang:", "trtllm_", "nv_trt_llm_")):
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        name, labels = match[1], _LABEL.findall(match[2] or "")
        if name.startswith("nv_"):
            name = next((_BY_LABEL[name, *label] for label in labels if (name, *label) in _BY_LABEL), name)
        if name == _CONFIG:
            config = dict(labels)
            blocks += _whole(config.get("num_gpu_blocks")) * _whole(config.get("block_size"))
        elif name in wanted:
            try:
                value = float(match[3])
            except ValueError:
                continue
            if 0 <= value < math.inf:  # also drops NaN
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
    shares = [sums[name] / counts[name] for name in _KV_SHARE if name in sums]
    tokens = blocks or int(sums.get(_SGLANG_TOKENS, 0))
    return LoadReport(
        waiting=_first(sums, _WAITING),
        running=_first(sums, _RUNNING),
        kv_share=min(1.0, shares[0]) if shares else None,
        kv_tokens_max=tokens or None,
        reads_hints=text.startswith(_PLUGIN) or f"\n{_PLUGIN}" in text,
    )


def read_load_header(value: bytes) -> LoadReport | None:
    """ORCA's `endpoint-load-metrics` as vLLM sends it, JSON or text; None if it holds no figure we know."""
    text = value.decode("latin-1").strip()
    if text.startswith("JSON"):
        text = text[4:].strip()
    if text.startswith("{"):
        try:
            header = json.loads(text)
        except (ValueError, RecursionError):
            return None
        metrics = header.get("named_metrics") if isinstance(header, dict) else None
        named = _figures(metrics) if isinstance(metrics, dict) else {}
    else:
        named = _figures(dict(re.findall(r"named_metrics\.(\w+)=([0-9.eE+-]+)", text)))
    waiting, share = named.get("num_requests_waiting"), named.get("kv_cache_usage_perc")
    if waiting is None and share is None:
        return None
    return LoadReport(waiting=None if waiting is None else int(waiting), kv_share=share)


def _figures(values: Mapping[str, object]) -> dict[str, float]:
    """The values that are figures: numbers, neither negative nor infinite."""
    figures = {}
    for name, value in values.items():
        try:
            number = float(value) if isinstance(value, int | float | str) else -1.0
        except (ValueError, OverflowError):
            continue
        if 0 <= number < math.inf:
            figures[name] = number
    return figures


def _first(sums: dict[str, float], names: tuple[str, ...]) -> int | None:
    return next((int(sums[name]) for name in names if name in sums), None)


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
