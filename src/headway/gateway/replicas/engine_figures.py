"""Figures of engines: which Prometheus names mean what at vLLM, SGLang and TensorRT-LLM, and which series repeat.

One row per engine. Sources: the metrics that each engine documents (vLLM: "Production metrics"; SGLang: "Production
metrics" and `srt/metrics/collector.py`; TensorRT-LLM: `examples/serve/prometheus_metrics.py` and Triton's backend).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from headway.gateway.replicas.load_report import FIGURE_MAX, LoadReport, is_figure

METRICS_PATHS = ("/metrics", "/prometheus/metrics")
"""Where engines answer with Prometheus text; trtllm-serve has it at the second one, and JSON at the first."""
_PLUGIN = "headway_steps_total"  # of Headway's plug-in, in vLLM's own metrics
_LINE_MAX = 4_096  # characters; no engine writes a longer line of the metrics that are read here
_LINE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?\s+(\S+)(?:\s+\d+)?$")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')

Labels: TypeAlias = Mapping[str, str]
Samples: TypeAlias = Mapping[str, list[tuple[Labels, float]]]


class Series(NamedTuple):
    """A metric by its name; with `label`, only its samples that have that label with that value."""

    name: str
    label: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """How one engine writes its figures.

    Samples of one figure add up, except those that differ in nothing but a label of `copies`: they repeat each other.

    Attributes:
        waiting: Requests in the engine's queue; the first name that is there counts.
        running: Requests in its batch, likewise.
        kv_share: Share of its KV memory in use, from 0 to 1, likewise; of several the mean.
        kv_tokens: Metrics whose product is its KV memory in tokens.
        kv_labels: A metric and two of its labels, whose product is the same.
        preemptions: Counter of requests that lost their KV memory to others, likewise.
        steps: Counter of engine steps, likewise; of several engines the mean.
        copies: Labels of ranks that all report the figures of the whole.
        breakdown: A label that splits a figure; where it is empty on one sample, that sample is the total.
    """

    waiting: tuple[Series, ...]
    running: tuple[Series, ...]
    kv_share: tuple[Series, ...]
    kv_tokens: tuple[Series, ...] = ()
    kv_labels: tuple[str, str, str] | None = None
    preemptions: tuple[Series, ...] = ()
    steps: tuple[Series, ...] = ()
    copies: frozenset[str] = frozenset()
    breakdown: str = ""


_VLLM = EngineFigures(  # several engines behind one address differ in the label `engine`
    waiting=(Series("vllm:num_requests_waiting"),),
    running=(Series("vllm:num_requests_running"),),
    kv_share=(Series("vllm:kv_cache_usage_perc"), Series("vllm:gpu_cache_usage_perc")),
    kv_labels=("vllm:cache_config_info", "num_gpu_blocks", "block_size"),
    preemptions=(Series("vllm:num_preemptions_total"),),
    steps=(Series("vllm:iteration_tokens_total_count"),),  # a histogram with one observation a step
)
_SGLANG = EngineFigures(  # --enable-metrics-for-all-schedulers: every rank; --enable-priority-scheduling: `priority`
    waiting=(Series("sglang:num_queue_reqs"),),
    running=(Series("sglang:num_running_reqs"),),
    kv_share=(Series("sglang:token_usage"),),
    kv_tokens=(Series("sglang:max_total_num_tokens"),),
    preemptions=(Series("sglang:num_retracted_requests_total"),),  # `num_retracted_reqs` is a gauge
    copies=frozenset(["tp_rank", "pp_rank", "cp_rank", "moe_ep_rank"]),  # `dp_rank` adds up: its requests are its own
    breakdown="priority",
)
_TENSORRT_LLM = EngineFigures(
    waiting=(Series("trtllm_num_requests_waiting"),),
    running=(Series("trtllm_num_requests_running"),),
    kv_share=(Series("trtllm_kv_cache_utilization"),),
    kv_tokens=(Series("trtllm_kv_cache_max_blocks"), Series("trtllm_kv_cache_tokens_per_block")),
)
_REQUESTS, _BLOCKS = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
_GENERAL = "nv_trt_llm_general_metrics"
_TRITON = EngineFigures(  # its TensorRT-LLM backend: one name for many figures
    waiting=(Series(_REQUESTS, "request_type", "waiting"),),
    running=(Series(_REQUESTS, "request_type", "scheduled"),),
    kv_share=(Series(_BLOCKS, "kv_cache_block_type", "fraction"),),
    kv_tokens=(Series(_BLOCKS, "kv_cache_block_type", "max"), Series(_BLOCKS, "kv_cache_block_type", "tokens_per")),
    steps=(Series(_GENERAL, "general_type", "iteration_counter"),),
)
ENGINES = {"vLLM": _VLLM, "SGLang": _SGLANG, "TensorRT-LLM": _TENSORRT_LLM, "Triton": _TRITON}
"""By the name of the engine. The first engine that reports a figure decides it."""


def _names() -> frozenset[str]:
    series = [
        one
        for row in ENGINES.values()
        for one in (*row.waiting, *row.running, *row.kv_share, *row.kv_tokens, *row.preemptions, *row.steps)
    ]
    return frozenset([*(one.name for one in series), *(row.kv_labels[0] for row in ENGINES.values() if row.kv_labels)])


_NAMES = _names()
_STARTS = tuple(_NAMES)


def read_metrics(text: str) -> LoadReport:
    """The figures in a Prometheus text; of what it does not hold, None. Never raises."""
    samples = _samples(text)
    rows = ENGINES.values()
    waiting = _first(_sum(samples, row, row.waiting) for row in rows)
    running = _first(_sum(samples, row, row.running) for row in rows)
    kv_share = _first(_mean(samples, row, row.kv_share) for row in rows)
    kv_tokens = _first(_kv_tokens(samples, row) for row in rows)
    preemptions = _first(_sum(samples, row, row.preemptions) for row in rows)
    steps = _first(_mean(samples, row, row.steps) for row in rows)
    return LoadReport(
        waiting=None if waiting is None else int(waiting),
        running=None if running is None else int(running),
        kv_share=None if kv_share is None else min(1.0, kv_share),
        kv_tokens_max=int(kv_tokens) if kv_tokens else None,
        reads_hints=text.startswith(_PLUGIN) or f"\n{_PLUGIN}" in text,
        preemptions=None if preemptions is None else int(preemptions),
        steps=steps,
    )


def _samples(text: str) -> Samples:
    """The samples of the metrics that are read here, by name."""
    samples: dict[str, list[tuple[Labels, float]]] = {}
    for line in text.splitlines():
        if not line.startswith(_STARTS) or len(line) > _LINE_MAX:
            continue
        match = _LINE.match(line)
        if match is None or match[1] not in _NAMES:
            continue
        try:
            value = float(match[3])
        except ValueError:
            continue
        if is_figure(value):
            samples.setdefault(match[1], []).append((dict(_LABEL.findall(match[2] or "")), value))
    return samples


def _parts(samples: Samples, row: EngineFigures, series: Series) -> list[float]:
    """One value per part of the replica, each counted once."""
    found = [
        (labels, value)
        for labels, value in samples.get(series.name, ())
        if not series.label or labels.get(series.label) == series.value
    ]
    if row.breakdown and any(labels.get(row.breakdown) == "" for labels, _ in found):
        found = [(labels, value) for labels, value in found if labels.get(row.breakdown, "") == ""]
    parts: dict[frozenset[tuple[str, str]], float] = {}
    for labels, value in found:
        part = frozenset(pair for pair in labels.items() if pair[0] not in row.copies)
        parts[part] = max(value, parts.get(part, 0.0))
    return list(parts.values())


def _sum(samples: Samples, row: EngineFigures, names: Iterable[Series]) -> float | None:
    return _first(sum(parts) if parts else None for parts in (_parts(samples, row, series) for series in names))


def _mean(samples: Samples, row: EngineFigures, names: Iterable[Series]) -> float | None:
    return _first(
        sum(parts) / len(parts) if parts else None for parts in (_parts(samples, row, series) for series in names)
    )


def _kv_tokens(samples: Samples, row: EngineFigures) -> float | None:
    if row.kv_labels is not None:
        name, *factors = row.kv_labels
        sizes = [math.prod(_whole(labels.get(factor)) for factor in factors) for labels, _ in samples.get(name, ())]
        return float(min(sum(sizes), FIGURE_MAX)) or None
    sums = [_sum(samples, row, (series,)) for series in row.kv_tokens]
    known = [one for one in sums if one is not None]
    if not sums or len(known) < len(sums):
        return None
    return min(math.prod(known), FIGURE_MAX)


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _whole(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() and len(text) <= 15 else 0
