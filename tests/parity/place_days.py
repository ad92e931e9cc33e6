"""Days for the comparison of the places where policies decide: bundles, traces and rules.

The trace keeps a replica full from its ninth request on, so that a request never finds room by chance; see
`DIFFERENCES` in `headway.policies.places`. Lengths are estimated by the bound that the client declared, unless a day is
about learning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from headway.gateway.settings import PolicySettings
from headway.policies.catalog import ADMISSION, ORDERING, PREEMPTION
from headway.policies.contracts import Need
from headway.policies.places import needs_of
from headway.scheduling.bundle import bundle_of
from headway.scheduling.scheduler import Policies
from headway.simulator.rules import EngineRules
from headway.simulator.trace import Trace
from tests.parity.parity_days import ParityDay, in_sessions, shared_prefixes

SEATS = EngineRules(
    kv_blocks=2_000, max_model_tokens=512, max_num_batched_tokens=4_096, max_num_seqs=8, prefix_caching=True
)
"""Memory suffices: seats are short, and the order decides."""
MEMORY = replace(SEATS, kv_blocks=60, max_num_seqs=32)
"""Memory is short, and admission decides."""
EVERY_OTHER_STEP = ("past-future", "past-future-common-draws")
"""Admission policies that are asked at even steps; here at all of them, since each place counts from its beginning."""
_REQUESTS = 160
_COSTS = PolicySettings().costs


@dataclass(frozen=True)
class PlaceDay:
    """One bundle on one trace under one set of rules."""

    trace: Trace
    rules: EngineRules
    ordering: str = "fcfs"
    admission: str = "greedy"
    preemption: str = "latest-admitted"
    prediction: str = "declared-max"
    options: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def name(self) -> str:
        names = (self.ordering, self.admission, self.preemption, self.prediction)
        chosen = [name for name, usual in zip(names, _USUAL, strict=True) if name != usual]
        flags = "async" if self.rules.async_scheduling else "sync"
        short = "seats" if self.rules.kv_blocks == SEATS.kv_blocks else "memory"
        return f"{' '.join(chosen) or 'fcfs'}, {self.trace.name}, {short} short, {flags}"

    def policies(self) -> Policies:
        """Fresh ones, for the simulator."""
        return bundle_of(self, costs=_COSTS, seed=0)

    def gateway_policies(self) -> PolicySettings:
        """The same for the gateway."""
        return PolicySettings(
            ordering=self.ordering,
            admission=self.admission,
            preemption=self.preemption,
            prediction=self.prediction,
            options=self.options or {},
        )

    def plugin_day(self) -> ParityDay:
        """The same for vLLM with our plug-in."""
        chosen: dict[str, Any] = {
            kind: {"name": getattr(self, kind), "options": dict((self.options or {}).get(kind, {}))}
            for kind in ("ordering", "admission", "preemption", "prediction")
        }
        never = {"harm_seconds": 1e9, "budget_ms": 60_000}  # neither guard judges by the clock of a busy machine
        config = {**chosen, "costs": _COSTS._asdict(), "metrics_dir": "", "guard": never}
        return ParityDay(self.name, self.trace, self.rules, "fcfs", bundle=config)


_USUAL = ("fcfs", "greedy", "latest-admitted", "declared-max")


def full_trace(name: str, seed: int, *, shared: bool, sessions: bool, block_tokens: int = 24) -> Trace:
    """Requests that keep eight seats taken; `shared` prefixes in blocks, and turns of `sessions`, or neither."""
    rng = np.random.default_rng(seed)
    rows = np.arange(_REQUESTS)
    prompt = np.where(rng.random(_REQUESTS) < 0.7, rng.integers(10, 60, _REQUESTS), rng.integers(100, 300, _REQUESTS))
    output = np.where(rows < 8, rng.integers(60, 120, _REQUESTS), rng.integers(2, 80, _REQUESTS))
    gaps = np.where(rows <= 8, 0.03, rng.exponential(0.015, _REQUESTS))
    trace = Trace(
        name,
        np.cumsum(gaps),
        prompt,
        output,
        max_output_tokens=output + rng.integers(0, 20, _REQUESTS),
        priority=rng.integers(0, 3, _REQUESTS),
        tenant=rng.integers(0, 3, _REQUESTS),
        tenants=("a", "b", "c"),
        deadline_seconds=rng.uniform(500, 900, _REQUESTS),
        **later_deadlines(_REQUESTS, seed),
        prefix_ids=shared_prefixes(rng, prompt, block_tokens) if shared else None,
        prefix_block_tokens=block_tokens,
    )
    if not sessions:
        return trace
    trace = in_sessions(trace)
    return replace(trace, think_seconds=trace.think_seconds + 0.013)  # a client thinks longer than a step's fraction


def later_deadlines(count: int, seed: int) -> dict[str, Any]:
    """Columns of deadlines after the first token: each is of a third of the requests.

    A program here is one request, the first of two stages, of which its client tells the number or not: what is left of
    a program's time at a later stage would depend on the day.
    """
    rng = np.random.default_rng([seed, 1])
    rows = np.arange(count)
    in_program = rows % 3 == 2
    return {
        "tpot_deadline_seconds": np.where(rows % 3 == 0, rng.uniform(0.05, 0.5, count), np.nan),
        "end_deadline_seconds": np.where(rows % 3 == 1, rng.uniform(5, 900, count), np.nan),
        "program": np.where(in_program, rows // 3, -1),
        "stage": np.where(in_program, 1, 0),
        "stages": np.where(in_program & (rows % 2 == 0), 2, 0),
        "program_deadline_seconds": np.where(in_program, rng.uniform(5, 900, count), np.nan),
    }


PLAIN = full_trace("private prompts", 2, shared=False, sessions=False)
SESSIONS = full_trace("sessions", 2, shared=False, sessions=True)
SHARED = full_trace("sessions with shared prefixes", 2, shared=True, sessions=True)


SHARED_IN_KV_BLOCKS = full_trace(
    "sessions with shared KV blocks", 2, shared=True, sessions=True, block_tokens=SEATS.block_tokens
)
"""For orders that go by prefixes: a trace and an engine name the same ones where their blocks are as long."""


def order_days(trace: Trace) -> Iterator[PlaceDay]:
    """Every order, where seats are short."""
    for asynchronous in (False, True):
        rules = replace(SEATS, async_scheduling=asynchronous)
        for ordering in ORDERING:
            by_prefix = trace is SHARED and Need.SHARED_PREFIXES in needs_of("ordering", ordering)
            yield PlaceDay(SHARED_IN_KV_BLOCKS if by_prefix else trace, rules, ordering=ordering)


def admission_days(trace: Trace, ordering: str = "fcfs") -> Iterator[PlaceDay]:
    """Every admission policy, where memory is short."""
    for asynchronous in (False, True):
        rules = replace(MEMORY, async_scheduling=asynchronous)
        for admission in (*ADMISSION, "backfill/reserve-max"):
            options = {"admission": {"steps_between": 1}} if admission in EVERY_OTHER_STEP else {}
            yield PlaceDay(trace, rules, ordering=ordering, admission=admission, options=options)


def preemption_days(trace: Trace) -> Iterator[PlaceDay]:
    """Every preemption policy, under greedy admission where memory is short."""
    for asynchronous in (False, True):
        rules = replace(MEMORY, async_scheduling=asynchronous)
        for preemption in PREEMPTION:
            yield PlaceDay(trace, rules, ordering="priced-work", preemption=preemption, prediction="running-mean")
