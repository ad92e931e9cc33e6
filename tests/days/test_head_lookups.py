"""Days on which the prefix cache thrashes while requests wait: heads are looked up again, in both engines alike."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from headway.domain.event import Admitted, Event
from headway.scheduling import queue as queue_module
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace
from headway.testing.day_laws import Day, StepRecords, same_day
from headway.testing.strategies import PolicyNames

RULES = EngineRules(kv_blocks=260, max_model_tokens=2_048, max_num_batched_tokens=256, max_num_seqs=8)
STEP_TIME = LinearStepTime(60_000_000_000, 200_000_000, 100_000, 0)


def thrashing(seed: int, *, shared: bool) -> Trace:
    """Forty documents, asked about again and again; the cache holds three of them."""
    dice = random.Random(seed)
    at, rows = 0.0, []
    for row in range(90):
        at += dice.expovariate(2.0)
        document = dice.randint(0, 9)
        blocks = 1 + 7 * document % 13
        prompt = 64 * blocks + dice.randint(1, 60)
        ids = [100 * document + place for place in range(blocks)] + [10_000 + row]
        rows.append((at, prompt, dice.choice([1, 5, 40, 160]), ids, dice.randint(0, 2)))
    columns = list(zip(*rows, strict=True))
    return Trace(
        "thrashing",
        np.array(columns[0]),
        np.array(columns[1]),
        np.array(columns[2]),
        prefix_ids=list(columns[3]) if shared else None,
        prefix_block_tokens=64,
        priority=np.array(columns[4]),
    )


class Admissions:
    """The cached tokens that each admitted request was believed to have."""

    def __init__(self) -> None:
        self.beliefs: list[tuple[int, int]] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, Admitted):
            self.beliefs.append((int(event.request.id), event.request.cached_prompt_tokens))


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize(
    ("ordering", "resumed", "preemption"),
    [
        ("shortest-uncached-prefill-first", "front", "latest-admitted"),
        ("highest-response-ratio", "by-rank", "latest-admitted"),
        ("priced-work", "by-rank", "least-sunk-work"),
        ("longest-prefix-match", "by-rank", "lowest-priority"),
        ("fair-share/shortest-uncached-prefill-first", "by-rank", "latest-admitted"),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_both_engines_look_heads_up_at_the_same_moments(
    monkeypatch: pytest.MonkeyPatch, ordering: str, resumed: str, preemption: str, asynchronous: bool, shared: bool
) -> None:
    moved: list[object] = []
    requeue = queue_module.WaitingQueue.requeue

    def counted(queue: queue_module.WaitingQueue, request_id: object) -> None:
        moved.append(request_id)
        requeue(queue, request_id)  # type: ignore[arg-type]

    monkeypatch.setattr(queue_module.WaitingQueue, "requeue", counted)
    names = PolicyNames(ordering, "greedy", preemption, "running-mean")
    for seed in range(2):
        trace = thrashing(seed, shared=shared)
        rules = replace(
            RULES, async_scheduling=asynchronous, resumed=resumed, kv_blocks=RULES.kv_blocks if shared else 100
        )
        days, beliefs, moves = [], [], []
        for engine in (simulate, simulate_reference):
            log, admissions = StepRecords(), Admissions()
            moved.clear()
            outcome = engine(trace, rules, STEP_TIME, names.make(trace), observer=log, listeners=[admissions])
            days.append(Day(trace, rules, outcome, log.steps))
            beliefs.append(admissions.beliefs)
            moves.append(moved[:])
        same_day(*days)
        assert beliefs[0] == beliefs[1]
        assert moves[0] == moves[1]
        assert moves[0], "no head was ever moved: this day shows nothing"


def test_more_preempted_heads_than_one_step_may_move() -> None:
    """Forty alike requests outgrow the memory at once; a head that was preempted has no answer of the cache yet."""
    trace = Trace("growing", np.zeros(40), np.full(40, 160), np.full(40, 400))
    rules = EngineRules(kv_blocks=400, max_model_tokens=2_048)
    days = []
    for engine in (simulate, simulate_reference):
        log = StepRecords()
        policies = PolicyNames("fcfs", "greedy", "latest-admitted", "running-mean").make(trace)
        days.append(Day(trace, rules, engine(trace, rules, STEP_TIME, policies, observer=log), log.steps))
    same_day(*days)
    assert days[0].outcome.preemptions.sum() > 4
