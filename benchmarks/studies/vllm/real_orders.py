"""A real vLLM engine in this process, whose scheduler is exchanged between two runs: stock or ours, in any order.

Between two runs nobody runs or waits, and the new scheduler begins with an empty prefix cache: the worker, its weights
and its memory stay.

Time is this process's processor time, and while nobody runs or waits it jumps to the next arrival: the engine is one
thread, and what others do on the machine does not count. The plug-in is given the same clock.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

from vllm import LLM, SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler as StockScheduler

from benchmarks.studies.vllm.real_traffic import CONTEXT_TOKENS, Row
from headway.policies.catalog import ORDERING
from headway.vllm_plugin import Scheduler as OurScheduler
from headway.vllm_plugin.config import DEFAULT_ORDERING

STOCK, STOCK_PRIORITY = "vLLM fcfs", "vLLM priority = prompt tokens"
OURS: dict[str, dict[str, Any]] = {
    "fcfs": {"ordering": "fcfs"},
    "highest-response-ratio": {"ordering": "highest-response-ratio"},
    "ewsjf": {"ordering": "ewsjf"},
    "smallest-volume-first, histogram": {"ordering": "smallest-volume-first", "prediction": "histogram"},
    "priced-work, histogram": {"ordering": "priced-work", "prediction": "histogram"},
}
ORDERS = [STOCK, STOCK_PRIORITY, *(name for name, config in OURS.items() if config["ordering"] in ORDERING)]
DEFAULT = next((name for name, config in OURS.items() if config == {"ordering": DEFAULT_ORDERING}), "")
IDLE = [STOCK, "fcfs", *(name for name in (DEFAULT, "priced-work, histogram") if name in ORDERS)]
"""Enough where hardly anybody queues."""
GUARD = {"harm_ratio": 1e6}  # orders are compared as they are
_BUILT_WITH: dict[str, Any] = {}


def first_scheduler(**arguments: Any) -> Any:
    """What vLLM builds at its start; remembers with what."""
    _BUILT_WITH.update(arguments)
    return StockScheduler(**arguments)


def scheduler_of(order: str) -> Any:
    """A scheduler for the engine that runs, as vLLM would have built it with that order's settings."""
    config = _BUILT_WITH["vllm_config"]
    if order not in OURS:
        config.scheduler_config.policy = "priority" if order == STOCK_PRIORITY else "fcfs"
        return StockScheduler(**_BUILT_WITH)
    config.scheduler_config.policy = "fcfs"
    config.additional_config = {"headway": {"metrics_dir": "", "guard": GUARD, **OURS[order]}}
    return OurScheduler(**_BUILT_WITH)


class BusyClock:
    """Seconds since it was made: those that this process computed, and those that were skipped."""

    def __init__(self) -> None:
        self._began = time.process_time()

    def __call__(self) -> float:
        return time.process_time() - self._began

    def skip_to(self, seconds: float) -> None:
        """Nothing is to do before."""
        self._began -= max(0.0, seconds - self())


class Engine:
    """A vLLM engine with 8 seats and 256 tokens a step."""

    def __init__(self, model: str, **arguments: Any) -> None:
        self._engine = LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=CONTEXT_TOKENS,
            max_num_seqs=8,
            max_num_batched_tokens=256,
            scheduler_cls="benchmarks.studies.vllm.real_orders.first_scheduler",
            disable_log_stats=True,
            **arguments,
        ).llm_engine
        self._core: Any = self._engine.engine_core.engine_core
        self._runs = 0

    def run(self, order: str, rows: list[Row]) -> dict[str, float]:
        """One run: seconds from each request's arrival, tokens a second, counts."""
        self._core.scheduler = scheduler = scheduler_of(order)
        preempted = _counts_preemptions(scheduler)
        gc.collect()
        clock = BusyClock()
        headway = getattr(scheduler, "headway", None)
        if headway is not None:
            headway.clock = clock
        first, gaps, makespan = self._serve(rows, order == STOCK_PRIORITY, clock)
        found = {"makespan": makespan, "itl_p99": p99(gaps)}
        for kind in ("short", "long"):
            waits = [first[i] - row.at_seconds for i, row in enumerate(rows) if row.length_class == kind]
            found |= {f"{kind}_ttft_mean": statistics.mean(waits), f"{kind}_ttft_p99": p99(waits)}
        waits = [first[i] - row.at_seconds for i, row in enumerate(rows)]
        return {
            **found,
            "ttft_mean": statistics.mean(waits),
            "tokens_per_second": sum(len(row.tokens) + row.output_tokens for row in rows) / makespan,
            "preemptions": len(preempted),
            "preempted_tokens": sum(preempted),
            "plugin_us_per_step": 0.0 if headway is None else _plugin_us_per_step(headway.metrics),
        }

    def _serve(self, rows: list[Row], by_length: bool, clock: BusyClock) -> tuple[dict[int, float], list[float], float]:
        """First-token times by row, all gaps between tokens, and when the last one came; seconds."""
        engine, self._runs = self._engine, self._runs + 1
        first: dict[int, float] = {}
        last: dict[int, float] = {}
        counts: dict[int, int] = {}
        gaps: list[float] = []
        coming = 0
        while coming < len(rows) or engine.has_unfinished_requests():
            now = clock()
            while coming < len(rows) and rows[coming].at_seconds <= now:
                row = rows[coming]
                params = SamplingParams(
                    max_tokens=row.output_tokens, ignore_eos=True, temperature=0.0, detokenize=False
                )
                priority = len(row.tokens) if by_length else 0
                prompt = {"prompt_token_ids": row.tokens}
                engine.add_request(f"{self._runs}-{coming}", prompt, params, priority=priority)
                coming += 1
            if not engine.has_unfinished_requests():
                clock.skip_to(rows[coming].at_seconds)
                continue
            outputs = engine.step()
            now = clock()
            for output in outputs:
                index, tokens = int(output.request_id.split("-")[1]), len(output.outputs[0].token_ids)
                if tokens > counts.get(index, 0):
                    if index in last:
                        gaps.append(now - last[index])
                    first.setdefault(index, now)
                    last[index], counts[index] = now, tokens
        makespan = clock()
        while self._core.scheduler.has_requests():  # the worker has to hear who ended last
            engine.step()
        return first, gaps, makespan


def _counts_preemptions(scheduler: Any) -> list[int]:
    """A list that gets the computed tokens of every request that loses its blocks."""
    lost: list[int] = []
    its_own = scheduler._preempt_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> Any:
        lost.append(request.num_computed_tokens)
        return its_own(request, *args, **kwargs)

    scheduler._preempt_request = counted
    return lost


def _plugin_us_per_step(metrics: Any) -> float:
    return float(1e6 * metrics.decisions.sum / max(1, metrics.counters["steps", ""]))


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
