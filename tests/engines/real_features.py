"""vLLM's features under our queue, on the real engine: each with the tokens that stock's scheduler gives.

    VLLM_ENABLE_V1_MULTIPROCESSING=0 python -m tests.engines.real_features MODEL FOLDER ENGINE > findings.json

Run by an interpreter that has vLLM. ENGINE is `adapters` (LoRA, grammars, n > 1, sleep, prefix resets), `n-gram`
(speculative decoding), `connector` (KV that comes from outside, later) or `fusion`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import __version__ as vllm_version
from vllm.sampling_params import StructuredOutputsParams

from tests.engines import feature_engine
from tests.engines.feature_engine import FeatureEngine, Rows, differing, prompt
from tests.engines.real_drafts import aborts_while_drafting, drafts_by_n_gram
from tests.engines.real_fusion import (
    a_fault_ends_fusion,
    alike_prompts_share_blocks,
    connector,
    fused_preempted_and_resumed,
    nothing_held_is_altered,
    some_stay_exact,
)
from tests.engines.real_limits import prompts_keep_to_their_budget, urgent_ones_take_the_place_of_others
from tests.engines.real_offline import offline_gives_way

Check = Callable[[FeatureEngine], dict[str, Any]]
ADAPTERS: list[Any] = []


def several_answers(engine: FeatureEngine) -> dict[str, Any]:
    """`n = 3` for half of the requests: every answer has stock's tokens, and each request ends once."""
    rows: Rows = [
        {
            "id": f"n{index}",
            "tokens": prompt(index, 30 + 40 * index),
            "output": 6 + index,
            "sampling": {"n": 3, "temperature": 1.0, "top_k": 1} if index % 2 else {},  # greedy may not have n > 1
        }
        for index in range(8)
    ]
    engine.rule_stock()
    stock = engine.serve(rows)
    engine.rule(ordering="shortest-prompt-first")
    mine = engine.serve(rows)
    failures = differing(stock, mine, [row["id"] for row in rows]) + engine.leftovers()
    failures += [f"{row['id']} has not three answers" for row in rows[1::2] if len(mine.tokens[row["id"]]) != 3]
    return {"failures": failures}


def grammars(engine: FeatureEngine) -> dict[str, Any]:
    """JSON and regular expressions: tokens as stock's; a request whose grammar is there late has kept its place."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    kinds = ({"json": schema}, {"regex": "[ab]{4,8}"}, {"choice": ["yes", "no"]})
    rows: Rows = []
    for index in range(9):
        row: dict[str, Any] = {"id": f"g{index}", "tokens": prompt(index, 200 - 20 * index), "output": 12}
        if index % 3:
            row["sampling"] = {
                "structured_outputs": StructuredOutputsParams(**kinds[index % len(kinds)]),
                "ignore_eos": False,
                "detokenize": True,
            }
        rows.append(row)
    engine.rule_stock()
    stock = engine.serve(rows)
    scheduler = engine.rule(ordering="shortest-prompt-first")
    parked_most = 0

    def meddle(step: int) -> None:
        nonlocal parked_most
        parked_most = max(parked_most, scheduler.headway.queue.parked)

    mine = engine.serve(rows, meddle)
    failures = differing(stock, mine, [row["id"] for row in rows]) + engine.leftovers()
    return {"failures": failures, "numbers": {"parked_most": parked_most}}


def late_grammar_keeps_its_place(engine: FeatureEngine) -> dict[str, Any]:
    """One seat. The first to come waits for its grammar: others run meanwhile, and then it is before the later ones."""
    manager = engine.core.structured_output_manager
    failures: list[str] = []
    scheduler = engine.rule(ordering="fcfs", hints=False)
    scheduler.max_num_active_reqs = 1
    real, late = manager.backend, None
    engine.add({"id": "runs", "tokens": prompt(1, 20), "output": 30})
    engine.engine.step()
    structured = StructuredOutputsParams(regex="[cd]{4,8}")
    engine.add({"id": "late", "tokens": prompt(2, 20), "output": 4, "sampling": {"structured_outputs": structured}})
    late = next(r for id_, r in scheduler.requests.items() if id_.startswith("late"))
    asked = late.structured_output_request
    grammar = wait_for(lambda: asked.grammar)
    asked.grammar = None  # as if it were still being compiled
    for index in range(3):
        engine.add({"id": f"later{index}", "tokens": prompt(3 + index, 20), "output": 8})

    def meddle(step: int) -> None:
        if "later0" in {id_.rsplit("-", 1)[0] for id_ in (r.request_id for r in scheduler.running)}:
            asked.grammar = grammar

    day = engine.drain(meddle)
    order = [id_ for id_ in day.first if id_ != "runs"]
    if order != ["later0", "late", "later1", "later2"]:
        failures.append(f"first tokens came in the order {order}")
    assert manager.backend is real
    return {"failures": failures + engine.leftovers(), "numbers": {"order": order}}


def wait_for(found: Callable[[], Any], seconds: float = 30.0) -> Any:
    until = time.monotonic() + seconds
    while (value := found()) is None:
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    return value


def adapters_at_their_limit(engine: FeatureEngine) -> dict[str, Any]:
    """`max_loras = 1`: one adapter a batch. Tokens as stock's, no request is lost, others pass those the limit holds.

    Left out: tokens of requests without an adapter, where batches differ from stock's. vLLM's CPU kernels apply some
    adapter to them when another request of the batch has one, so that under stock too they depend on the company.
    """
    rows: Rows = [
        {
            "id": f"l{index}",
            "tokens": prompt(index, 30 + 10 * (index % 5)),
            "output": 10,
            "lora": ADAPTERS[index % 3] if index % 4 else None,
        }
        for index in range(16)
    ]
    engine.rule_stock()
    stock = engine.serve(rows)
    failures, numbers = [], {}
    for ordering in ("fcfs", "shortest-prompt-first", "highest-response-ratio", "adapter-clusters"):
        options = {"adapters_max": 1} if ordering == "adapter-clusters" else {}
        scheduler = engine.rule(ordering={"name": ordering, "options": options})
        mixed, deferred = 0, 0

        def meddle(step: int, scheduler: Any = scheduler) -> None:
            nonlocal mixed, deferred
            running = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}
            mixed = max(mixed, len(running))
            deferred = max(deferred, scheduler.headway.queue.parked)

        mine = engine.serve(rows, meddle)
        compared = [row["id"] for row in rows if row["lora"] or ordering == "fcfs"]
        failures += [f"{ordering}: {one}" for one in differing(stock, mine, compared)]
        failures += [f"{row['id']} ended {mine.ends.get(row['id'])} times" for row in rows if mine.ends[row["id"]] != 1]
        failures += [f"{ordering}: {one}" for one in engine.leftovers()]
        failures += [f"{ordering}: {mixed} adapters ran at once"] if mixed > 1 else []
        numbers[ordering] = {"held_by_the_limit": deferred}
        if not deferred:
            failures.append(f"{ordering}: the limit never held a request")
        if ordering == "fcfs" and mine.first != stock.first:
            failures.append(f"fcfs: first tokens came in the order {mine.first}, stock's was {stock.first}")
    tokens = {tuple(stock.tokens[row["id"]][0]) for row in rows[:4]}
    if len(tokens) < 4:
        failures.append("the adapters change nothing")
    return {"failures": failures, "numbers": numbers}


def sleeps_while_requests_wait(engine: FeatureEngine) -> dict[str, Any]:
    """Sleep of level 0 keeps every request: none runs meanwhile, new ones queue in order, all have stock's tokens."""
    rows: Rows = [{"id": f"s{index}", "tokens": prompt(index, 300 - 30 * index), "output": 8} for index in range(9)]
    engine.rule_stock()
    stock = engine.serve(rows)
    scheduler = engine.rule(ordering="shortest-prompt-first")
    for row in rows[:6]:
        engine.add(row)
    engine.engine.step()
    engine.engine.sleep(level=0, mode="keep")
    failures = []
    outputs = [output for _ in range(3) for output in engine.engine.step()]
    if outputs:
        failures.append("a request ran while the engine slept")
    for row in rows[6:]:
        engine.add(row)
    engine.engine.abort_request(["s5"])
    if len(scheduler.waiting) + len(scheduler.running) != 8:
        failures.append(f"{len(scheduler.waiting)} wait and {len(scheduler.running)} run while it sleeps, of 8")
    engine.engine.wake_up(["scheduling"])
    mine = engine.drain()
    failures += differing(stock, mine, [row["id"] for row in rows if row["id"] != "s5"]) + engine.leftovers()
    order = [id_ for id_ in mine.first if id_ in ("s6", "s7", "s8")]
    if order != ["s8", "s7", "s6"]:
        failures.append(f"those that came during the sleep went in the order {order}")
    return {"failures": failures}


def prefix_reset_with_everybody_running(engine: FeatureEngine) -> dict[str, Any]:
    """The prefix cache is reset, and all who run are preempted for it: tokens as stock's, in stock's order."""
    shared = prompt(99, 96)
    rows: Rows = [{"id": f"p{index}", "tokens": shared + prompt(index, 40), "output": 12} for index in range(8)]
    failures, firsts, days = [], [], []
    for rule in (engine.rule_stock, lambda: engine.rule(ordering="fcfs")):
        scheduler, resets = rule(), []

        def meddle(step: int, scheduler: Any = scheduler, resets: list[bool] = resets) -> None:
            if step in (3, 9):
                resets.append(scheduler.reset_prefix_cache(reset_running_requests=True))

        days.append(engine.serve(rows, meddle))
        firsts.append(days[-1].first)
        failures += engine.leftovers()
        failures += [] if resets == [True, True] else [f"the prefix cache was reset: {resets}"]
    if firsts[0] != firsts[1]:
        failures.append(f"first tokens came in the order {firsts[1]}, stock's was {firsts[0]}")
    return {"failures": failures + differing(days[0], days[1], [row["id"] for row in rows])}


def priorities_of_clients(engine: FeatureEngine) -> dict[str, Any]:
    """A client's priority and a gateway's rank, lower sooner, in one order; a client's own wins over the rank."""
    engine.rule(ordering="priority").max_num_active_reqs = 1
    engine.add({"id": "runs", "tokens": prompt(0, 20), "output": 10})
    engine.engine.step()
    said: dict[str, dict[str, Any]] = {
        "priority 5": {"priority": 5},
        "rank 3": {"hints": {"headway_rank": 3}},
        "nothing": {},
        "rank -2": {"hints": {"headway_rank": "-2"}},
        "priority -7": {"priority": -7},
        "priority 1, rank -9": {"priority": 1, "hints": {"headway_rank": -9}},
    }
    rows = [{"id": id_, "tokens": prompt(7, 20), "output": 2, **more} for id_, more in said.items()]
    order = [id_ for id_ in engine.serve(rows).first if id_ != "runs"]
    wanted = ["priority -7", "rank -2", "nothing", "priority 1, rank -9", "rank 3", "priority 5"]
    failures = [] if order == wanted else [f"served in the order {order}"]
    return {"failures": failures + engine.leftovers()}


def learned_state_outlives_the_engine(engine: FeatureEngine) -> dict[str, Any]:
    """Lanes and lengths are on disk when the scheduler ends and back in the next; a tuner without Optuna is refused."""
    rows: Rows = [{"id": f"e{index}", "tokens": prompt(index, 10 + 7 * index), "output": 3} for index in range(12)]
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        config = {"ordering": "ewsjf", "prediction": "histogram", "state_file": f"{folder}/state.json"}
        seen = []
        for _ in range(2):
            scheduler = engine.rule(**config)
            engine.serve(rows)
            failures += engine.leftovers()
            scheduler.headway.learned.close()
            kept = json.loads(Path(config["state_file"]).read_text())["learned"]
            seen.append(kept["ordering"]["state"]["seen"])
        if seen != [12, 24]:
            failures.append(f"requests seen, by the state kept: {seen}")
    if importlib.util.find_spec("optuna") is None:
        try:
            engine.rule(ordering="ewsjf", live_tuning={})
            failures.append("a tuner without Optuna was started")
        except ValueError as error:
            if "live_tuning: tuning needs Optuna, which is not installed: pip install" not in str(error):
                failures.append(str(error))
    return {"failures": failures, "numbers": {"seen": seen}}


def remote_kv_keeps_its_place(engine: FeatureEngine) -> dict[str, Any]:
    """KV loads that take steps: a request that waits for one holds no other up; tokens are stock's."""
    rows: Rows = [
        {"id": f"k{index}", "tokens": prompt(50 + index, 130 if index % 2 else 20), "output": 8} for index in range(10)
    ]
    ids, failures, loads, days = [row["id"] for row in rows], [], [], []
    scheduler = engine.rule_stock()
    computed = [engine.serve([row]) for row in rows]  # one by one: the example connector stores what one step computes
    for rule in (engine.rule_stock, lambda: engine.rule(ordering="fcfs"), engine.rule):
        scheduler = rule()
        seen: set[str] = set()

        def meddle(step: int, scheduler: Any = scheduler, seen: set[str] = seen) -> None:
            seen.update(r.request_id for r in loading(scheduler))

        days.append(engine.serve(rows, meddle))
        loads.append(len(seen))
        failures += engine.leftovers()
    if loads != [5, 5, 5]:
        failures.append(f"so many waited for remote KV: {loads}")
    if days[0].first != days[1].first:
        failures.append(f"first tokens under fcfs came in the order {days[1].first}, stock's was {days[0].first}")
    for day in days:
        for row, before in zip(rows, computed, strict=True):
            failures += differing(before, day, [row["id"]])
    if days[1].first == ids:
        failures.append("no request passed those whose KV was on its way")
    return {"failures": failures[:8], "numbers": {"waited_for_remote_kv": loads, "first": days[2].first}}


def aborts_while_kv_comes(engine: FeatureEngine) -> dict[str, Any]:
    """Clients leave while their KV is on its way: the others have stock's tokens and no block is lost."""
    rows: Rows = [{"id": f"x{index}", "tokens": prompt(77, 130), "output": 6} for index in range(6)]
    engine.rule_stock()
    engine.serve(rows[:1])
    stock = engine.serve(rows)
    scheduler = engine.rule()
    gone: list[str] = []

    def meddle(step: int) -> None:
        under_way = loading(scheduler)
        if under_way and len(gone) < 2:
            gone.append(under_way[-1].request_id.rsplit("-", 1)[0])
            engine.engine.abort_request([gone[-1]])

    mine = engine.serve(rows, meddle)
    failures = [] if len(gone) == 2 else ["no client left while KV was on its way"]
    stayed = [row["id"] for row in rows if row["id"] not in gone]
    return {"failures": failures + differing(stock, mine, stayed) + engine.leftovers(), "numbers": {"gone": gone}}


def loading(scheduler: Any) -> list[Any]:
    return [r for r in scheduler.requests.values() if r.status.name == "WAITING_FOR_REMOTE_KVS"]


ENGINES: dict[str, tuple[dict[str, Any], tuple[Check, ...]]] = {
    "adapters": (
        {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 4, "max_lora_rank": 8},
        (
            several_answers,
            grammars,
            late_grammar_keeps_its_place,
            adapters_at_their_limit,
            sleeps_while_requests_wait,
            prefix_reset_with_everybody_running,
            priorities_of_clients,
            learned_state_outlives_the_engine,
            offline_gives_way,
            prompts_keep_to_their_budget,
            urgent_ones_take_the_place_of_others,
        ),
    ),
    "n-gram": (
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}},
        (drafts_by_n_gram, aborts_while_drafting),
    ),
    "connector": (
        {"enable_prefix_caching": False, "num_gpu_blocks_override": 80},
        (remote_kv_keeps_its_place, aborts_while_kv_comes),
    ),
    "fusion": (
        {},
        (
            alike_prompts_share_blocks,
            nothing_held_is_altered,
            fused_preempted_and_resumed,
            some_stay_exact,
            a_fault_ends_fusion,
        ),
    ),
}


def main() -> None:
    model, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    options, checks = ENGINES[kind]
    if kind == "adapters":
        ADAPTERS.extend(feature_engine.write_adapters(model, folder, 3))
    if kind == "connector":
        from tests.engines.late_connector import transfer_config

        options = {**options, "kv_transfer_config": transfer_config(folder)}
    if kind == "fusion":
        options = {**options, "kv_transfer_config": connector()}
    findings: dict[str, Any] = {"vllm": vllm_version, "checks": {}}
    engine = FeatureEngine(str(model), **options)
    for check in checks:
        if sys.argv[4:] and check.__name__ not in sys.argv[4:]:
            continue
        began = time.perf_counter()
        try:
            findings["checks"][check.__name__] = check(engine)
        except Exception:
            findings["checks"][check.__name__] = {"failures": [traceback.format_exc()[-2000:]]}
            break  # a request left in the engine would spoil the next
        print(f"{check.__name__}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
    print("\n" + json.dumps(findings), file=sys.__stdout__, flush=True)
    os._exit(0)  # vLLM's destructors complain about a process that ends


if __name__ == "__main__":
    sys.stdout = sys.stderr  # whatever a library prints must not get into the answer
    main()
