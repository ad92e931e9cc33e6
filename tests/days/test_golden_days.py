"""A dozen whole days with the numbers they gave when they were last understood.

A change here is either a fault or a change of meaning: find out which, say so in the commit, then write the file again
with `python tests/days/test_golden_days.py`.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headway.domain.costs import ServiceCosts
from headway.scheduling.bundle import bundle
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace

GOLDEN = Path(__file__).with_name("golden.json")
RULES = EngineRules(kv_blocks=1_500, max_num_batched_tokens=1_024, max_num_seqs=64, async_scheduling=False)
STEP_TIME = LinearStepTime(9_000_000_000, 25_000_000, 60_000, 15_000_000)
COSTS = ServiceCosts(25e-6, 0.01)


def mixed(requests: int, rate: float, seed: int, *, shared: bool = False, sessions: bool = False) -> Trace:
    """Nine short questions to one long document; Python's own generator, whose streams do not change."""
    dice = random.Random(seed)
    at, rows = 0.0, []
    for row in range(requests):
        at += dice.expovariate(rate)
        long = dice.random() < 0.1
        prompt = dice.randint(2_000, 9_000) if long else dice.randint(16, 600)
        output = dice.randint(1, 40) if dice.random() < 0.5 else dice.randint(40, 500)
        family = dice.randint(0, 5)
        fresh = [1_000 * (row + 10) + i for i in range(-(-prompt // 512))]
        ids = [family * 100 + i for i in range(min(3, len(fresh)))] + fresh[3:]
        rows.append(
            (round(at, 6), prompt, output, dice.choice([0, output, 600]), dice.randint(0, 3), ids, dice.randint(-1, 1))
        )
    columns = list(zip(*rows, strict=True))
    return Trace(
        "mixed",
        np.array(columns[0]),
        np.array(columns[1]),
        np.array(columns[2]),
        max_output_tokens=np.array(columns[3]),
        tenant=np.array(columns[4]),
        tenants=("a", "b", "c", "d"),
        session=np.arange(requests) % 40 if sessions else None,
        turn=np.arange(requests) // 40 if sessions else None,
        think_seconds=np.full(requests, 0.5) if sessions else None,
        prefix_ids=columns[5] if shared else None,
        priority=np.array(columns[6]),
    )


DAYS = {
    "calm": (mixed(300, 1.0, 1), RULES, {}),
    "busy": (mixed(400, 6.0, 2), RULES, {}),
    "overload, little memory": (mixed(400, 30.0, 3), replace(RULES, kv_blocks=700), {}),
    "overload, no prefix cache": (
        mixed(400, 30.0, 3),
        replace(RULES, kv_blocks=700, async_scheduling=True, prefix_caching=False),
        {},
    ),
    "overload, asynchronous": (mixed(400, 30.0, 3), replace(RULES, kv_blocks=700, async_scheduling=True), {}),
    "shortest first": (mixed(400, 12.0, 4), RULES, {"ordering": "shortest-prompt-first"}),
    "response ratio": (mixed(400, 12.0, 4), RULES, {"ordering": "highest-response-ratio"}),
    "volume, peak check": (
        mixed(400, 12.0, 4),
        replace(RULES, kv_blocks=800),
        {"ordering": "smallest-volume-first", "admission": "peak-check"},
    ),
    "tenants": (mixed(400, 12.0, 5), RULES, {"ordering": "fair-share/shortest-prompt-first"}),
    "priority": (
        mixed(300, 20.0, 6),
        replace(RULES, kv_blocks=600, resumed="by-rank"),
        {"ordering": "priority", "preemption": "lowest-priority"},
    ),
    "prefix cache": (mixed(400, 12.0, 7, shared=True), replace(RULES, kv_blocks=900), {}),
    "sessions, prefix cache, asynchronous": (
        mixed(400, 12.0, 8, shared=True, sessions=True),
        replace(RULES, async_scheduling=True, long_prefill_token_threshold=256, watermark=0.05),
        {"ordering": "shortest-uncached-prefill-first"},
    ),
    "least sunk work": (mixed(400, 30.0, 9), replace(RULES, kv_blocks=650), {"preemption": "least-sunk-work"}),
}


def live(name: str) -> dict[str, object]:
    trace, rules, policies = DAYS[name]
    day = simulate(trace, rules, STEP_TIME, bundle(**policies, costs=COSTS, seed=0))
    done = day.ended_ps >= 0
    return {
        "completed": int(done.sum()),
        "steps": day.steps,
        "makespan_ps": day.makespan_ps,
        "ttft_sum_ps": int((day.first_token_ps - day.arrived_ps)[done].sum()),
        "e2e_sum_ps": int((day.ended_ps - day.arrived_ps)[done].sum()),
        "preemptions": int(day.preemptions.sum()),
        "recomputed_tokens": int(day.recomputed_tokens.sum()),
        "cached_tokens": int(day.cached_tokens.sum()),
        "kv_blocks_peak": day.kv_blocks_peak,
        "every_request": hashlib.sha256(np.stack([day.first_token_ps, day.ended_ps]).tobytes()).hexdigest()[:16],
    }


@pytest.mark.parametrize("name", DAYS)
def test_golden_day(name: str) -> None:
    assert live(name) == json.loads(GOLDEN.read_text())[name]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: live(name) for name in DAYS}, indent=1) + "\n")
