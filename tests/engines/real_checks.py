"""What must hold of the plug-in on the real engine: order, tokens, conservation, faults, 10,000 waiting.

    VLLM_ENABLE_V1_MULTIPROCESSING=0 python -m tests.engines.real_checks MODEL > findings.json

Run by an interpreter that has vLLM. Two engine starts: a stock one for the tokens, and ours, whose policies are changed
between the checks (the engine lives in this process, so its scheduler can be reached).
"""

from __future__ import annotations

import gc
import json
import os
import random
import sys
import time
import traceback
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_DISABLE_REQUEST_ID_RANDOMIZATION", "1")  # some orders draw lots by id

from vllm import LLM, SamplingParams
from vllm import __version__ as vllm_version

from headway.domain.request import Request
from headway.policies.catalog import ORDERING
from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.publishing import Publisher
from headway.vllm_plugin.scheduler_hooks import SchedulerHooks
from headway.vllm_plugin.vllm_adapter import VllmAdapter
from tests.engines import faulty_policies
from tests.engines.expected_order import expected_order

TIGHT_BLOCKS, BLOCK_TOKENS, SEATS = 36, 32, 8  # room for one request of the longest kind, and a little
LENGTHS = (300, 30, 280, 40, 260, 20, 240, 10, 35, 220, 15, 200, 25, 180, 160, 45)


class Engine:
    """A vLLM engine in this process."""

    def __init__(self, model: str, scheduler_cls: str | None, blocks: int) -> None:
        self.llm = LLM(
            model,
            dtype="float32",
            enforce_eager=True,
            max_model_len=1024,
            max_num_seqs=SEATS,
            max_num_batched_tokens=256,
            block_size=BLOCK_TOKENS,
            num_gpu_blocks_override=blocks,
            enable_prefix_caching=False,
            scheduler_cls=scheduler_cls,
            additional_config={"headway": {"metrics_dir": ""}} if scheduler_cls else {},
            disable_log_stats=True,
        )
        self.engine = self.llm.llm_engine
        self.scheduler: Any = self.engine.engine_core.engine_core.scheduler

    def rule(self, **config: Any) -> SchedulerHooks:
        """Other policies, on the engine that runs."""
        assert not self.scheduler.requests, "only between two days"
        read = read_config({"headway": {"metrics_dir": "", **config}}, {})
        adapter, queue = VllmAdapter(self.scheduler), type(self.scheduler.waiting)
        hooks = SchedulerHooks(read, adapter, Publisher(None, None), "0", queue_class=queue)
        self.scheduler.headway, self.scheduler.waiting = hooks, hooks.queue
        return hooks

    def add(self, row: dict[str, Any]) -> None:
        """A client asks, with its hints."""
        params = greedy(row["output"])
        params.extra_args = row.get("hints")
        prompt = {"prompt_token_ids": row["tokens"]}
        self.engine.add_request(row["id"], prompt, params, priority=row.get("priority", 0))

    def serve(self, rows: list[dict[str, Any]], chaos: random.Random | None = None) -> dict[str, Any]:
        """All rows to the end; with chaos some of them are aborted at any moment. Tokens, order and ends by id."""
        coming = list(rows)
        answers: dict[str, list[int]] = {}
        first: list[str] = []
        ends: dict[str, int] = {}
        aborted: set[str] = set()
        while coming or self.engine.has_unfinished_requests():
            for _ in range(len(coming) if chaos is None else min(len(coming), chaos.randint(0, 4))):
                self.add(coming.pop(0))
            if chaos is not None and chaos.random() < 0.1:
                leaving = [row["id"] for row in rows if row.get("leaves") and row["id"] not in ends]
                if leaving:
                    aborted.add(leaving[0])
                    rows = [row for row in rows if row["id"] != leaving[0]]
                    coming = [row for row in coming if row["id"] != leaving[0]]
                    self.engine.abort_request([leaving[0]])
            for output in self.engine.step():
                if output.outputs and output.outputs[0].token_ids and output.request_id not in answers:
                    first.append(output.request_id)
                answers[output.request_id] = list(output.outputs[0].token_ids)
                if output.finished:
                    ends[output.request_id] = ends.get(output.request_id, 0) + 1
        return {"tokens": answers, "first": first, "ends": ends, "aborted": aborted}

    def leftovers(self) -> list[str]:
        """What is left although no request is in the engine."""
        pool = self.scheduler.kv_cache_manager.block_pool
        headway, failures = self.scheduler.headway, []
        if pool.get_num_free_blocks() != pool.num_gpu_blocks - 1:
            failures.append(f"{pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()} blocks leaked")
        if len(self.scheduler.waiting) or headway.book.entries or headway.book.batch.size:
            failures.append("the books are not empty")
        return failures


def rows_of(count: int, seed: int) -> list[dict[str, Any]]:
    chance = random.Random(seed)
    return [
        {
            "id": f"q{index}",
            "tokens": [chance.randrange(3, 1000) for _ in range(chance.choice([20, 60, 200, 500]))],
            "output": chance.randint(4, 60),
            "priority": chance.randint(-2, 2),
            "hints": {"headway_tenant": chance.choice("abc"), **({"headway_expected_tokens": 9} if index % 2 else {})},
            "leaves": index % 5 == 0,
        }
        for index in range(count)
    ]


def stock_tokens(model: str, rows: list[dict[str, Any]]) -> dict[str, list[int]]:
    engine = Engine(model, None, 400)
    tokens: dict[str, list[int]] = engine.serve(rows)["tokens"]
    engine.engine.engine_core.shutdown()
    del engine
    gc.collect()
    return tokens


def rows_for_one_seat() -> list[dict[str, Any]]:
    """Sixteen of all lengths, the later the more urgent, of three tenants."""
    return [
        {
            "id": f"o{index}",
            "tokens": [5 + index] * length,
            "output": 2 + index % 3,
            "priority": -index,
            "hints": {"headway_deadline_ms": 1_000 * (40 - index), "headway_tenant": "abc"[index % 3]},
        }
        for index, length in enumerate(LENGTHS)
    ]


def one_at_a_time(engine: Engine, hooks: SchedulerHooks, rows: list[dict[str, Any]]) -> tuple[list[str], list[str]]:
    """Ids as the engine admitted them, and as our own scheduler names them; a step takes a hundredth of a second."""
    now, scheduler = 0.0, engine.scheduler
    admissions: list[tuple[float, str]] = []
    first: dict[str, float] = {}
    ended: dict[str, float] = {}
    its_own = scheduler.schedule

    def schedule(*args: Any) -> Any:
        ran = {request.request_id for request in scheduler.running}
        out = its_own(*args)
        admissions.extend([(now, request.request_id) for request in scheduler.running if request.request_id not in ran])
        return out

    def step() -> None:
        nonlocal now
        for output in engine.engine.step():
            first.setdefault(output.request_id, now)
            if output.finished:
                ended[output.request_id] = now
        now += 0.01

    scheduler.schedule, hooks.clock = schedule, lambda: now
    views = [view_of(rows[0], now)]
    engine.add(rows[0])
    step()  # the first has the seat when the others come
    for row in rows[1:]:
        views.append(view_of(row, now))
        engine.add(row)
    while engine.engine.has_unfinished_requests():
        step()
    del scheduler.schedule  # the class's own again
    produced = {row["id"]: row["output"] for row in rows}
    at = [instant for instant, _ in admissions]
    return [id_ for _, id_ in admissions], expected_order(hooks.config.ordering, views, at, first, ended, produced)


def view_of(row: dict[str, Any], now: float) -> Request:
    """What a policy may see of a row that arrives now."""
    hints = row["hints"]
    return Request(
        row["id"], now, len(row["tokens"]), tenant=hints["headway_tenant"], max_output_tokens=row["output"],
        deadline=now + hints["headway_deadline_ms"] / 1e3, priority=row["priority"],
    )  # fmt: skip


def order_of_every_policy(engine: Engine) -> dict[str, Any]:
    """One seat, sixteen at once: vLLM admits whom our own scheduler names, for every ordering of the catalogue."""
    failures, orders = [], {}
    faults = {config["ordering"] for config, _ in faulty_policies.FAULTS.values() if "ordering" in config}
    engine.scheduler.max_num_active_reqs = 1
    for ordering in [name for name in ORDERING if name not in faults]:
        hooks = engine.rule(ordering=ordering)
        orders[ordering], expected = one_at_a_time(engine, hooks, rows_for_one_seat())
        if orders[ordering] != expected:
            failures.append(f"{ordering}: admitted {orders[ordering]}, expected {expected}")
        failures += engine.leftovers()
    engine.scheduler.max_num_active_reqs = SEATS
    if len({tuple(order) for order in orders.values()}) < 5:
        failures.append("nearly all policies gave one order")
    return {"failures": failures, "numbers": orders}


def greedy(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output, ignore_eos=True, temperature=0.0, detokenize=False)


def tokens_are_stocks(engine: Engine, rows: list[dict[str, Any]], stock: dict[str, list[int]]) -> dict[str, Any]:
    """Chaos with tight memory, aborts, priorities, hints, and each policy fault: tokens as stock's, each end once."""
    failures, preempted, days = [], 0, 0
    plans: list[tuple[str, dict[str, Any]]] = [
        ("default", {}),
        ("self-tuned", {"tuning": "self-tuned"}),
        ("volume, peak check, least sunk work", {
            "ordering": "smallest-volume-first", "admission": "peak-check", "preemption": "least-sunk-work"}),
        ("fair share, lowest priority", {"ordering": "fair-share", "preemption": "lowest-priority"}),
        ("reserve max", {"ordering": "priority", "admission": "reserve-max"}),
        *[(fault, dict(config)) for fault, (config, _) in faulty_policies.FAULTS.items()],
    ]  # fmt: skip
    for seed, (name, config) in enumerate(plans):
        guard = {"budget_ms": 20 if name == "stalls" else 60_000}  # a test machine may be busy with others
        hooks = engine.rule(**config, guard=guard)
        day = engine.serve(rows, random.Random(seed))
        print(f"  {name}", file=sys.stderr, flush=True)
        days += 1
        preempted += int(hooks.metrics.counters["preemptions", ""])
        for row in rows:
            id_ = row["id"]
            if id_ in day["aborted"]:
                continue
            if day["ends"].get(id_) != 1:
                failures.append(f"{name}: {id_} ended {day['ends'].get(id_, 0)} times")
            elif day["tokens"][id_] != stock[id_]:
                failures.append(f"{name}: {id_} got other tokens than stock's")
        failures += [f"{name}: {one}" for one in engine.leftovers()]
        faulted = name in faulty_policies.FAULTS and name != "names-a-stranger"  # asked only when memory is short
        if faulted and not hooks.policies.disabled:
            failures.append(f"{name}: the policies were not disabled")
    if not preempted:
        failures.append("memory was never short")
    return {"failures": failures[:8], "numbers": {"days": days, "preempted": preempted}}


def ten_thousand_wait(engine: Engine) -> dict[str, Any]:
    """10,000 are queued at once; all but 200 leave, in no order; the 200 are served."""
    engine.rule()
    chance, failures = random.Random(1), []
    rows = [f"t{index}" for index in range(10_000)]
    began = time.perf_counter()
    for id_ in rows:
        engine.engine.add_request(id_, {"prompt_token_ids": [chance.randrange(3, 1000) for _ in range(8)]}, greedy(2))
    added = time.perf_counter() - began
    waiting = len(engine.scheduler.waiting)
    engine.engine.step()
    leaving = rows[200:]
    chance.shuffle(leaving)
    began = time.perf_counter()
    for id_ in leaving:
        engine.engine.abort_request([id_])
    aborting = time.perf_counter() - began
    ended = set()
    while engine.engine.has_unfinished_requests():
        ended |= {output.request_id for output in engine.engine.step() if output.finished}
    if waiting != 10_000:
        failures.append(f"{waiting} waited")
    if not set(rows[:200]) <= ended | set(leaving):
        failures.append("a client that stayed was not served")
    numbers = {"add_seconds": round(added, 2), "abort_9800_seconds": round(aborting, 2)}
    return {"failures": failures + engine.leftovers(), "numbers": numbers}


def main() -> None:
    model = sys.argv[1]
    faulty_policies.register()
    rows = rows_of(60, 5)
    findings: dict[str, Any] = {"vllm": vllm_version, "checks": {}}
    stock = stock_tokens(model, rows)
    print("stock's tokens are known", file=sys.stderr, flush=True)
    engine = Engine(model, "headway.vllm_plugin.Scheduler", TIGHT_BLOCKS)
    checks = {
        "order_of_every_policy": lambda: order_of_every_policy(engine),
        "tokens_are_stocks": lambda: tokens_are_stocks(engine, rows, stock),
        "ten_thousand_wait": lambda: ten_thousand_wait(engine),
    }
    wanted = sys.argv[2:] or list(checks)
    for name in wanted:
        check = checks[name]
        began = time.perf_counter()
        try:
            findings["checks"][name] = check()
        except Exception:
            findings["checks"][name] = {"failures": [traceback.format_exc()[-1500:]]}
        print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n" + json.dumps(findings), file=sys.__stdout__, flush=True)
    os._exit(0)  # vLLM's destructors complain about a process that ends


if __name__ == "__main__":
    sys.stdout = sys.stderr  # whatever a library prints must not get into the answer
    main()
