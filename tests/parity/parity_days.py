"""The days on which our reference engine and vLLM are compared: generated ones and slices of recorded traces."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from headway.domain.engine_hints import (
    DEADLINE_MS,
    END_DEADLINE_MS,
    PROGRAM,
    PROGRAM_DEADLINE_MS,
    PROGRAM_STAGE,
    PROGRAM_STAGES,
    SESSION,
    TENANT,
    TPOT_MS,
)
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from headway.simulator.trace import Trace

# About a 7B model on one large GPU.
STEP_TIME = LinearStepTime(
    fixed_ps=8_000_000_000, ps_per_token=25_000_000, ps_per_context_token=20_000, ps_per_request=20_000_000
)
TINY = EngineRules(kv_blocks=2_000, block_tokens=16, max_model_tokens=512, max_num_batched_tokens=256, max_num_seqs=32)
GENERATED_REQUESTS = 120
CACHES = ("plain", "shared", "own")  # no prefix cache; one with shared prompts; one in which nothing is shared


@dataclass(frozen=True)
class ParityDay:
    """One trace under one set of rules.

    Attributes:
        ordering: vLLM's `--scheduling-policy`.
        policy: the ordering of Headway's plug-in inside vLLM; None for stock vLLM.
        plugin: what the plug-in does besides.
        bundle: its whole configuration instead of these two; then requests carry the hints that a gateway writes.
    """

    name: str
    trace: Trace
    rules: EngineRules
    ordering: Literal["fcfs", "priority"]
    step_time: LinearStepTime = STEP_TIME
    policy: str | None = None
    plugin: PluginRules = NO_PLUGIN
    bundle: dict[str, Any] | None = None

    def as_json(self) -> dict[str, Any]:
        """What `vllm_driver.py` reads."""
        trace = self.trace
        zeros = [0] * len(trace)
        return {
            "name": self.name,
            "rules": asdict(self.rules),
            "ordering": self.ordering,
            "headway": self._config(),
            "step_time": asdict(self.step_time),
            "trace": {
                "arrived_ps": np.rint(trace.arrived_seconds * PS_PER_SECOND).astype(np.int64).tolist(),
                "prompt_tokens": trace.prompt_tokens.tolist(),
                "output_tokens": trace.output_tokens.tolist(),
                "max_output_tokens": zeros if trace.max_output_tokens is None else trace.max_output_tokens.tolist(),
                "priority": zeros if trace.priority is None else trace.priority.tolist(),
                "prefix_ids": trace.prefix_ids,
                "prefix_block_tokens": trace.prefix_block_tokens,
                "next_turn": _next_turns(trace),
                "hints": None if self.bundle is None else _hints(trace),
                "think_ps": zeros
                if trace.think_seconds is None
                else np.rint(trace.think_seconds * PS_PER_SECOND).astype(np.int64).tolist(),
            },
        }

    def _config(self) -> dict[str, Any] | None:
        """The plug-in's; its time limits are off, since a busy machine is not what is compared."""
        if self.bundle is not None or self.policy is None:
            return self.bundle
        limits = HarmLimits(harm_ratio=1e9) if self.plugin.guard is None else self.plugin.guard
        quiet = {"prefix_hits": False, "metrics_dir": "", "explain_above_seconds": 1e9}
        return {
            "ordering": self.policy,
            "tuning": self.plugin.tuning,
            **({"tpot_seconds": self.plugin.tpot_seconds} if self.plugin.tuning == "prefill-budget" else {}),
            "displace": "off" if self.plugin.displace is None else asdict(self.plugin.displace),
            "guard": asdict(limits) | {"budget_ms": 1e9},
            **quiet,
        }


def _next_turns(trace: Trace) -> dict[int, int]:
    if trace.session is None or trace.turn is None:
        return {}
    row_of = {(int(s), int(t)): row for row, (s, t) in enumerate(zip(trace.session, trace.turn, strict=True)) if s >= 0}
    return {row: row_of[s, t + 1] for (s, t), row in row_of.items() if (s, t + 1) in row_of}


def _hints(trace: Trace) -> list[dict[str, object]]:
    """What a gateway would write into `vllm_xargs`."""
    rows: list[dict[str, object]] = []
    for row in range(len(trace)):
        hints: dict[str, object] = {}
        if trace.tenant is not None:
            hints[TENANT] = trace.tenants[int(trace.tenant[row])]
        if trace.session is not None and trace.session[row] >= 0:
            hints[SESSION] = str(int(trace.session[row]))
        if trace.deadline_seconds is not None:
            hints[DEADLINE_MS] = float(trace.deadline_seconds[row]) * 1_000
        if trace.has_later_deadlines:
            hints |= _later_hints(trace, row)
        rows.append(hints)
    return rows


def _later_hints(trace: Trace, row: int) -> dict[str, object]:
    """Deadlines after the first token, and the place in a program; that has one request."""
    hints: dict[str, object] = {}
    spans = {TPOT_MS: trace.tpot_deadline_seconds, END_DEADLINE_MS: trace.end_deadline_seconds}
    if trace.program is not None and trace.program[row] >= 0:
        assert trace.stage is not None
        assert trace.stages is not None
        hints |= {PROGRAM: str(int(trace.program[row])), PROGRAM_STAGE: int(trace.stage[row])}
        if trace.stages[row]:
            hints[PROGRAM_STAGES] = int(trace.stages[row])
        spans[PROGRAM_DEADLINE_MS] = trace.program_deadline_seconds
    for name, seconds in spans.items():
        if seconds is not None and not np.isnan(seconds[row]):
            hints[name] = float(seconds[row]) * 1_000
    return hints


def generated_days() -> Iterator[ParityDay]:
    """Every rule on a day that needs it, each with one and two batches in flight, and under each kind of `CACHES`."""
    tight = replace(TINY, kv_blocks=70)
    cases: dict[str, tuple[EngineRules, Literal["fcfs", "priority"]]] = {
        "ample": (TINY, "fcfs"),
        "tight": (tight, "fcfs"),
        "one-long-at-a-time": (replace(TINY, kv_blocks=33), "fcfs"),
        "chunks-of-40": (replace(tight, long_prefill_token_threshold=40), "fcfs"),
        "fair-chunks": (
            replace(tight, long_prefill_token_threshold=24, long_prefill_token_threshold_adaptive=True),
            "fcfs",
        ),
        "no-chunks": (replace(tight, chunked_prefill=False, max_num_batched_tokens=512), "fcfs"),
        "first-chunk-gate": (replace(tight, reserve_full_prompt=False), "fcfs"),
        "watermark": (replace(tight, kv_blocks=59, watermark=0.05), "fcfs"),  # 3 blocks of 60, one being vLLM's null
        "watermark-alone": (replace(tight, kv_blocks=34, watermark=0.4), "fcfs"),  # the longest fit only when alone
        "few-seats": (replace(TINY, max_num_seqs=4, max_num_batched_tokens=48), "fcfs"),
        "sessions": (tight, "fcfs"),
        "blocks-of-one": (replace(TINY, block_tokens=1, kv_blocks=900), "fcfs"),
        "priority-ample": (replace(TINY, resumed="by-rank"), "priority"),
        "priority-tight": (replace(tight, resumed="by-rank"), "priority"),
        "priority-chunks-of-40": (replace(tight, resumed="by-rank", long_prefill_token_threshold=40), "priority"),
        "priority-small-budget": (
            replace(tight, resumed="by-rank", max_num_batched_tokens=40, long_prefill_token_threshold=24),
            "priority",
        ),
        "priority-first-chunk-gate": (replace(tight, resumed="by-rank", reserve_full_prompt=False), "priority"),
    }
    for seed, (name, (rules, ordering)) in enumerate(cases.items()):
        for async_scheduling in (False, True):
            for number, cache in enumerate(CACHES):
                trace = generated_trace(np.random.default_rng([seed, async_scheduling, number]))
                if cache == "own":
                    trace = replace(trace, prefix_ids=None)
                yield ParityDay(
                    f"{name}-{'async' if async_scheduling else 'sync'}-{cache}",
                    in_sessions(trace) if name == "sessions" else trace,
                    replace(rules, async_scheduling=async_scheduling, prefix_caching=cache != "plain"),
                    ordering,
                )


def plugin_days() -> Iterator[ParityDay]:
    """What the plug-in does in vLLM beside its order, each with one and two batches in flight, without a prefix cache.

    The rest of what it does, such as asking the prefix cache, depends on how much time it has for that.
    """
    long_prompts = replace(TINY, max_num_batched_tokens=64)  # that is, beside a step's budget
    small_memory = replace(long_prompts, kv_blocks=60)
    guard = HarmLimits(harm_ratio=1.0, harm_slack_seconds=0.0, harm_seconds=1.0, step_back_seconds=2.0)
    cases = {
        "self-tuned": ("highest-response-ratio", long_prompts, PluginRules("self-tuned")),
        "self-tuned-own-threshold": (
            "shortest-prompt-first",
            replace(long_prompts, long_prefill_token_threshold=48),
            PluginRules("self-tuned"),
        ),
        "self-tuned-small-memory": ("shortest-prompt-first", small_memory, PluginRules("self-tuned")),
        "guard": ("shortest-prompt-first", small_memory, PluginRules(guard=guard)),
        "guard-and-self-tuned": ("shortest-prompt-first", small_memory, PluginRules("self-tuned", guard)),
        "prefill-budget": ("highest-response-ratio", TINY, PluginRules("prefill-budget", tpot_seconds=0.011)),
        "prefill-budget-own-threshold": (
            "shortest-prompt-first",
            replace(TINY, long_prefill_token_threshold=48, kv_blocks=90),
            PluginRules("prefill-budget", tpot_seconds=0.011),
        ),
        "prefill-budget-least": ("fcfs", TINY, PluginRules("prefill-budget", tpot_seconds=1e-9)),
        "guard-and-prefill-budget": (
            "shortest-prompt-first",
            small_memory,
            PluginRules("prefill-budget", guard, tpot_seconds=0.009),
        ),
        "displaced-from-seats": (
            "priority",
            replace(TINY, max_num_seqs=6),
            PluginRules(displace=DisplaceRules(2, 0.05)),
        ),
        "displaced-from-memory": ("priority", small_memory, PluginRules(displace=DisplaceRules(1, 0.0))),
        "displaced-everywhere": (
            "highest-response-ratio",
            replace(small_memory, max_num_seqs=6),
            PluginRules("prefill-budget", displace=DisplaceRules(3, 0.1), tpot_seconds=0.011),
        ),
    }
    for seed, (name, (policy, rules, plugin)) in enumerate(cases.items()):
        for async_scheduling in (False, True):
            yield ParityDay(
                f"{name}-{'async' if async_scheduling else 'sync'}",
                replace(generated_trace(np.random.default_rng([100 + seed, async_scheduling]), 300), prefix_ids=None),
                replace(rules, async_scheduling=async_scheduling, prefix_caching=False),
                "fcfs",
                policy=policy,
                plugin=plugin,
            )


def generated_trace(rng: np.random.Generator, requests: int = GENERATED_REQUESTS) -> Trace:
    """Bursts; outputs of one token; prompts above the budget; ends by bound and by stop token; shared prefixes."""
    gaps = rng.exponential(0.06, requests) * (rng.random(requests) < 0.6)
    gaps += rng.random(requests) * 1e-6  # no two at the same instant: vLLM breaks such ties by the request id
    prompt = np.where(rng.random(requests) < 0.7, rng.integers(1, 60, requests), rng.integers(100, 420, requests))
    output = np.where(rng.random(requests) < 0.15, 1, rng.integers(2, 80, requests))
    bound = np.choose(rng.integers(0, 3, requests), [np.zeros_like(output), output, output + 10])
    at_the_limit = rng.random(requests) < 0.05  # ends exactly at the model's longest context
    output = np.where(at_the_limit, 512 - prompt, output)
    bound = np.where(at_the_limit, 0, bound)
    return Trace(
        "generated",
        np.cumsum(gaps),
        prompt,
        output,
        max_output_tokens=bound,
        priority=rng.integers(0, 3, requests),
        prefix_ids=shared_prefixes(rng, prompt, 24),
        prefix_block_tokens=24,  # not a multiple of the engine's 16, so that blocks lie across two ids
    )


def in_sessions(trace: Trace, turns: int = 4) -> Trace:
    """The same requests as closed loops: row r is turn r // sessions of session r % sessions."""
    rows = np.arange(len(trace))
    sessions = len(trace) // turns
    return replace(
        trace, session=rows % sessions, turn=rows // sessions, think_seconds=(rows % 7) * 0.02 * (rows >= sessions)
    )


def shared_prefixes(rng: np.random.Generator, prompt: np.ndarray, block_tokens: int) -> list[list[int]]:
    """Prompts drawn from a tree: at each block a prompt stays with the crowd (0.9) or leaves for ever."""
    ids: dict[tuple[int, ...], int] = {}
    rows: list[list[int]] = []
    for row, tokens in enumerate(prompt.tolist()):
        path: tuple[int, ...] = (int(rng.integers(0, 3)),)
        chain: list[int] = []
        for block in range(-(-tokens // block_tokens)):
            partial = (block + 1) * block_tokens > tokens
            path += (-tokens,) if partial else ()
            path += (int(rng.integers(0, 2)),) if rng.random() < 0.9 else (1_000 + row,)
            chain.append(ids.setdefault(path, len(ids)))
        rows.append(chain[: len(chain) - int(rng.random() < 0.2)])  # some prompts end with a part that nobody named
    return rows


def recorded_days(folder: Path) -> Iterator[ParityDay]:
    """Slices of public traces on a replica that is small for them."""
    rules = EngineRules(kv_blocks=1_500, max_model_tokens=16_384, max_num_batched_tokens=2_048, max_num_seqs=64)
    plain = replace(rules, async_scheduling=False)
    for name, rows, speed in (("azure_conv_2023", 250, 4.0), ("servegen_m_large", 200, 2.0)):
        trace = _recorded(folder, name, rows, rules.max_model_tokens, speed)
        for label, which in (("sync", plain), ("async", rules)):
            yield ParityDay(f"{name}-{label}", trace, which, "fcfs")
            ranked = replace(which, resumed="by-rank")
            yield ParityDay(f"{name}-priority-{label}", trace, ranked, "priority")
    large = replace(rules, kv_blocks=4_600, max_model_tokens=65_536, max_num_batched_tokens=8_192)
    for name, rows, speed in (("mooncake_conversation", 60, 1.0), ("agentic_coding_weka", 40, 1.0)):
        trace = _recorded(folder, name, rows, large.max_model_tokens, speed)
        for label, async_scheduling in (("sync", False), ("async", True)):
            yield ParityDay(f"{name}-{label}", trace, replace(large, async_scheduling=async_scheduling), "fcfs")


def _recorded(folder: Path, name: str, rows: int, longest: int, speed: float) -> Trace:
    """The first rows that fit the replica, sessions as closed loops, arrivals `speed` times as dense."""
    lines: list[dict[str, Any]] = []
    with gzip.open(folder / f"{name}.jsonl.gz", "rt") as file:
        for text in file:
            line = json.loads(text)
            if line["input_length"] + line["output_length"] <= longest:
                lines.append(line)
            if len(lines) == rows:
                break
    sessions = {line["session_id"]: number for number, line in enumerate(lines) if "session_id" in line}
    # A session's calls are numbered anew: one that was left out must not break the chain.
    turns: dict[int, int] = {}
    session, turn = [], []
    for line in lines:
        number = sessions[line["session_id"]] if sessions else -1
        session.append(number)
        turn.append(turns.get(number, 0))
        turns[number] = turns.get(number, 0) + 1
    rng = np.random.default_rng(1)
    spread = rng.random(len(lines)) * 1e-4  # the recorded milliseconds coincide, and vLLM breaks such ties by the id
    return Trace(
        name,
        np.sort(np.array([line["timestamp"] for line in lines]) / 1_000 / speed + spread),
        np.array([line["input_length"] for line in lines]),
        np.array([line["output_length"] for line in lines]),
        priority=rng.integers(0, 3, len(lines)),
        prefix_ids=[line["hash_ids"] for line in lines] if "hash_ids" in lines[0] else None,
        prefix_block_tokens=512,
        session=np.array(session) if sessions else None,
        turn=np.array(turn) if sessions else None,
        think_seconds=np.array([min(line.get("think_time_ms", 0), 5_000) / 1_000 for line in lines])
        if sessions
        else None,
    )
