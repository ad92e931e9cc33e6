"""Small days drawn to be nasty, the same ones every time: what the two engines could see differently happens here.

Python's own generator draws them, whose streams do not change.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.offline_gate import OfflineRules
from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.rules import NO_PLUGIN, EngineRules, PluginRules
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.strategies import ADAPTER_NAMES, TENANTS, PolicyNames

KINDS = (
    "no cache",
    "own blocks",
    "shared blocks",
    "moving limits",
    "sessions",
    "plug-in",
    "adapter slots",
    "paged adapters",
    "offline",
    "prefill budget",
    "displacement",
)

_ORDERINGS = (
    "fcfs",
    "fcfs",
    "priority",
    "shortest-prompt-first",
    "shortest-uncached-prefill-first",
    "highest-response-ratio",
    "earliest-deadline-first",
    "fair-share/shortest-prompt-first",
)
_ADMISSIONS = ("greedy", "greedy", "greedy", "peak-check", "backfill", "reserve-max")
_PREEMPTIONS = ("latest-admitted", "lowest-priority", "least-sunk-work")
_GAPS_SECONDS = (0.0, 0.0, 0.0, 0.0, 0.001, 0.1, 1 / 3, 1.0)
_PREFIX_BLOCK_TOKENS = 16
_CONTEXT_TOKENS = 160


class NastyDay(NamedTuple):
    """What an engine is given."""

    trace: Trace
    rules: EngineRules
    step_time: LinearStepTime
    policies: PolicyNames
    plugin: PluginRules


def nasty_day(kind: str, seed: int) -> NastyDay:
    """Day number `seed` of one of `KINDS`: bursts and ties, memory for a few requests, budgets below a prompt."""
    dice = random.Random(f"{kind}, {seed}")
    shared = kind == "shared blocks" or (kind not in ("own blocks", "moving limits") and dice.random() < 0.5)
    halves = ("moving limits", "adapter slots", "paged adapters")
    caching = kind != "no cache" and (kind not in halves or dice.random() < 0.5)
    rules = _rules(dice, prefix_caching=caching, moving_limits=kind == "moving limits")
    policies = PolicyNames(dice.choice(_ORDERINGS), dice.choice(_ADMISSIONS), dice.choice(_PREEMPTIONS), "declared-max")
    step_time = LinearStepTime(
        dice.choice([1, 10**10, 333_333_333_333]),
        dice.choice([0, 10**6, 10**9]),
        dice.choice([0, 1, 10**5]),
        dice.choice([0, 10**7]),
    )
    plugin = PluginRules("self-tuned") if kind == "moving limits" else NO_PLUGIN
    if kind == "plug-in":
        limits = HarmLimits(1.0, 0.0, dice.choice([0.0, 1.0]), dice.choice([0.0, 0.5, 3.0]))
        plugin = PluginRules(dice.choice(["off", "self-tuned"]), dice.choice([None, limits, limits]))
    trace = _trace(dice, sessions=kind == "sessions", shared=shared)
    if "adapter" in kind:
        trace, rules = _with_adapters(dice, trace, rules, unified=kind == "paged adapters")
        if dice.random() < 0.5:
            policies = policies._replace(ordering=f"adapter-clusters/{dice.choice(('fcfs', 'highest-response-ratio'))}")
    if kind == "prefill budget":
        rules = replace(rules, chunked_prefill=True)
        plugin = PluginRules("prefill-budget", tpot_seconds=dice.choice([1e-9, 0.02, 0.35, 0.5, 2.0]))
    if kind == "displacement":
        policies = policies._replace(admission="greedy", ordering=dice.choice(["priority", policies.ordering]))
        displace = DisplaceRules(dice.randint(1, 3), dice.choice([0.0, 0.0, 0.5]))
        plugin = PluginRules(dice.choice(["off", "self-tuned"]), displace=displace)
    if kind == "offline":
        trace = replace(trace, offline=np.array([dice.random() < 0.5 for _ in range(len(trace))]))
        burst_seconds = dice.choice([1e-9, 0.1, 5.0])
        plugin = replace(plugin, offline=OfflineRules(dice.choice([0.0, 0.05, 0.3, 1.0]), burst_seconds))
    return NastyDay(trace, rules, step_time, policies, plugin)


def _with_adapters(
    dice: random.Random, trace: Trace, rules: EngineRules, *, unified: bool
) -> tuple[Trace, EngineRules]:
    """Four adapters, of which one is not served on some days, and places for some."""
    adapters = AdapterRules(
        resident_max=dice.randint(1, 3),
        blocks=dice.randint(0, 3),
        load_ps=dice.choice([0, 10**9, 333_333_333_333]),
        paging="unified" if unified else "slots",
        names=dice.choice([None, None, frozenset(ADAPTER_NAMES[:3])]),
    )
    wanted = np.array([dice.randint(-1, 3) for _ in range(len(trace))])
    return replace(trace, adapter=wanted, adapters=ADAPTER_NAMES), replace(rules, adapters=adapters)


def _rules(dice: random.Random, *, prefix_caching: bool, moving_limits: bool) -> EngineRules:
    seats = dice.randint(2, 6)
    chunked = moving_limits or dice.random() < 0.8
    threshold = dice.choice([0, 0, 7]) if chunked else 0
    block_tokens = dice.choice([1, 2, 2, 16])
    budget = seats + dice.randint(5, 20) if chunked else _CONTEXT_TOKENS + dice.randint(0, 50)
    return EngineRules(
        kv_blocks=-(-dice.randint(140, 220) // block_tokens),
        block_tokens=block_tokens,
        max_model_tokens=_CONTEXT_TOKENS,
        max_num_seqs=seats,
        max_num_batched_tokens=budget,
        chunked_prefill=chunked,
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=dice.random() < 0.5,
        reserve_full_prompt=dice.random() < 0.5,
        watermark=dice.choice([0.0, 0.0, 0.0, 0.1]),
        async_scheduling=dice.random() < 0.6,
        prefix_caching=prefix_caching,
        resumed=dice.choice(["front", "by-rank"]),
    )


def _trace(dice: random.Random, *, sessions: bool, shared: bool) -> Trace:
    at, turns = 0.0, [0, 0, 0]
    rows: list[dict[str, float]] = []
    prefix_ids: list[list[int]] = []
    for row in range(dice.randint(8, 14)):
        at += dice.choice(_GAPS_SECONDS)
        prompt, output = dice.choice([1, 5, 30, 60, 110]) + dice.randint(0, 5), dice.choice([1, 3, 20, 45])
        if dice.random() < 0.1:
            output = _CONTEXT_TOKENS - prompt + dice.randint(0, 1)  # the longest there is, or refused
        session = dice.randint(-1, 2) if sessions else -1
        turn = 0
        if session >= 0:
            turn = turns[session]
            turns[session] += 1
        blocks = -(-prompt // _PREFIX_BLOCK_TOKENS)
        same = dice.randint(0, blocks)
        document = dice.choice([1_000, 2_000])
        prefix_ids.append([document + i if i < same else 100 * (100 + row) + i for i in range(blocks)])
        rows.append(
            {
                "arrived_seconds": at,
                "prompt_tokens": prompt,
                "output_tokens": output,
                "max_output_tokens": dice.choice([0, output, output + 9]),
                "tenant": dice.randint(0, len(TENANTS) - 1),
                "session": session,
                "turn": turn,
                "think_seconds": dice.choice(_GAPS_SECONDS) if turn else 0.0,
                "deadline_seconds": dice.choice([float("nan"), 0.5, 20.0]),
                "priority": dice.choice([0, 0, -1, 3]),
            }
        )
    columns: dict[str, Any] = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns |= _later_deadlines(columns["session"], columns["turn"], columns["prompt_tokens"])
    return Trace(
        "nasty",
        prefix_ids=prefix_ids if shared else None,
        prefix_block_tokens=_PREFIX_BLOCK_TOKENS,
        tenants=TENANTS,
        **columns,
    )


def _later_deadlines(session: Any, turn: Any, prompt_tokens: Any) -> dict[str, Any]:
    """Deadlines of the end, and each session as a program; they take no throw from the dice of the day."""
    chance = np.random.default_rng(int(prompt_tokens.sum()))
    return {
        "end_deadline_seconds": chance.choice([np.nan, 5.0, 50.0], len(session)),
        "program": session,
        "stage": np.where(session >= 0, turn + 1, 0),
        "stages": np.where(session >= 0, chance.choice([0, 9], len(session)), 0),
        "program_deadline_seconds": chance.choice([np.nan, 10.0, 100.0], len(session)),
    }
