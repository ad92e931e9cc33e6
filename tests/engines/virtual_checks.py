"""What must hold of the plug-in on any vLLM, checked on the real scheduler in virtual time.

    python -m tests.engines.virtual_checks [CHECK ...] > findings.json

Run by an interpreter that has vLLM. Each check answers with what failed, one sentence each, and with numbers.
"""

from __future__ import annotations

import json
import random
import sys
import traceback
from collections.abc import Callable
from typing import Any

import vllm

from headway.domain import engine_hints
from headway.domain.request import Request
from headway.policies.catalog import ADMISSION, ORDERING, PREEMPTION
from tests.engines import faulty_policies
from tests.engines.expected_order import expected_order
from tests.engines.virtual_days import both, conserved, depth, mixed, ours
from tests.support import virtual_engine as engine

# the checks -----------------------------------------------------------------------------------------------------------


def fcfs_is_stock() -> dict[str, Any]:
    """`ordering = fcfs` takes vLLM's own decisions, step by step, with ample and with tight memory."""
    failures, steps = [], {}
    for name, asynchronous in both():
        for blocks in (4096, 300):
            rows = mixed(250, 60)
            stock = engine.Day(engine.build(None, asynchronous=asynchronous, blocks=blocks), depth=depth(asynchronous))
            day = engine.Day(ours(asynchronous, {"ordering": "fcfs"}, blocks=blocks), depth=depth(asynchronous))
            stock.run(rows)
            day.run(rows)
            steps[f"{name} {blocks} blocks"] = stock.steps
            if stock.step_log != day.step_log:
                failures.append(f"{name}, {blocks} blocks: the steps differ from stock's")
            failures += conserved(day, rows, blocks)
    return {"failures": failures, "numbers": steps}


def default_without_queue_is_stock() -> dict[str, Any]:
    """With no configuration and nothing waiting, every request gets its first and last token when stock gives it."""
    failures = []
    for name, asynchronous in both():
        rows = mixed(150, 4)
        stock = engine.Day(engine.build(None, asynchronous=asynchronous), depth=depth(asynchronous)).run(rows)
        day = engine.Day(ours(asynchronous), depth=depth(asynchronous)).run(rows)
        if (stock.first_token, stock.ended) != (day.first_token, day.ended):
            failures.append(f"{name}: times differ from stock's")
    return {"failures": failures}


def view_of(row: dict[str, Any]) -> Request:
    """What a policy may see of a row that arrives at 0."""
    tenant = row["hints"]["headway_tenant"]
    return Request(row["id"], 0.0, row["prompt"], tenant=tenant, max_output_tokens=4096, priority=row["priority"])


def order_of_every_policy() -> dict[str, Any]:
    """One seat, 40 requests at once: vLLM admits whom our own scheduler names, for every ordering of the catalogue."""
    failures, checked = [], []
    faults = {config["ordering"] for config, _ in faulty_policies.FAULTS.values() if "ordering" in config}
    for ordering in [name for name in ORDERING if name not in faults]:
        for name, asynchronous in both():
            rows = [{**row, "at": 0.0} for row in mixed(40, 1.0, seed=3)]
            day = engine.Day(ours(asynchronous, {"ordering": ordering}, seats=1), depth=depth(asynchronous)).run(rows)
            admitted = [request_id for _, request_id in day.admissions]
            admitted_at = [now for now, _ in day.admissions]
            expected = expected_order(
                ordering, [view_of(row) for row in rows], admitted_at, day.first_token, day.ended, day.true_length
            )
            if admitted != expected:
                failures.append(f"{name} {ordering}: admitted {admitted[:6]}…, expected {expected[:6]}…")
            failures += conserved(day, rows, 4096)
        checked.append(ordering)
    return {"failures": failures, "numbers": {"orderings": len(checked)}}


def chaos() -> dict[str, Any]:
    """Aborts at every stage, priorities, holds, reorders, tight memory, every admission and preemption policy."""
    failures, numbers = [], {"days": 0, "aborted": 0, "preempted": 0}
    faults = {name for config, _ in faulty_policies.FAULTS.values() for name in config.values()}
    admissions = [name for name in ADMISSION if name not in faults]
    preemptions = [name for name in PREEMPTION if name not in faults]
    plans = [
        (admission, preemption, ordering, tuning)
        for admission in admissions
        for preemption, ordering, tuning in zip(
            preemptions,
            ("highest-response-ratio", "fair-share/smallest-volume-first", "shortest-uncached-prefill-first"),
            ("off", "self-tuned", "self-tuned"),
            strict=False,
        )
    ]
    for seed, (admission, preemption, ordering, tuning) in enumerate(plans):
        for name, asynchronous in both():
            for blocks in (4096, 230):
                chance = random.Random(seed)

                def meddle(day: engine.Day, chance: random.Random = chance) -> None:
                    if chance.random() < 0.05 and day.scheduler.requests:
                        day.abort(chance.choice(sorted(day.scheduler.requests)))

                config = {"admission": admission, "preemption": preemption, "ordering": ordering, "tuning": tuning}
                config["prediction"] = "past-future" if "past" in admission else "histogram"
                day = engine.Day(
                    ours(asynchronous, config, blocks=blocks, seats=32), depth=depth(asynchronous), before_step=meddle
                )
                rows = mixed(120, 60, seed=seed)
                found = attempt(lambda day=day, rows=rows, blocks=blocks: conserved(day.run(rows), rows, blocks))
                aside = day.scheduler.headway.policies.disabled
                failures += [f"{name} {blocks} blocks {config}: {one}" for one in found]
                failures += [f"{name} {blocks} blocks {config}: policies were disabled"] if aside else []
                numbers["days"] += 1
                numbers["aborted"] += len(day.aborted)
                numbers["preempted"] += int(day.scheduler.headway.metrics.counters["preemptions", ""])
    return {"failures": failures, "numbers": numbers}


ODD_HINTS: list[object] = [
    *(None, True, False, -1, 0, 2**63, -(2**63), 1e308, float("nan"), float("inf")),
    *("", "x", "5", "nan", "\n", "\ud800", "a" * 5_000, b"x", [], {}, [1], {"a": 1}),
]


def odd_hints() -> dict[str, Any]:
    """Hints of every type, and priorities at the ends of their range: each request is served, and no policy fails."""
    failures = []
    for name, asynchronous in both():
        for ordering in ("fair-share/highest-response-ratio", "priority-aging", "earliest-deadline-first"):
            chance = random.Random(5)
            rows = mixed(60, 60, seed=5)
            for row in rows:
                row["hints"] = {hint: chance.choice(ODD_HINTS) for hint in sorted(engine_hints.NAMES)}
                row["priority"] = chance.choice([0, -1, 2**63 - 1, -(2**63)])
            day = engine.Day(ours(asynchronous, {"ordering": ordering}, blocks=230), depth=depth(asynchronous))
            failures += [f"{name} {ordering}: {one}" for one in conserved(day.run(rows), rows, 230)]
            failures += [f"{name} {ordering}: disabled"] if day.scheduler.headway.policies.disabled else []
    return {"failures": failures}


def policy_faults() -> dict[str, Any]:
    """Each fault puts the policies aside, once, for the reason it has; the day goes on and nothing is lost."""
    failures, seen = [], []
    for fault, (config, reason) in faulty_policies.FAULTS.items():
        for name, asynchronous in both():
            blocks = 260  # tight, so that victims are asked for
            guard = {"budget_ms": 20 if fault == "stalls" else 60_000}
            day = engine.Day(ours(asynchronous, {**config, "guard": guard}, blocks=blocks), depth=depth(asynchronous))
            rows = mixed(150, 60)
            found = attempt(lambda day=day, rows=rows, blocks=blocks: conserved(day.run(rows), rows, blocks))
            counters = day.scheduler.headway.metrics.counters
            counted = {why: counters["fallbacks", f'reason="{why}"'] for why in ("raised", "stalled", "nonsense")}
            if counted != {why: float(why == reason) for why in counted}:
                found.append(f"fallbacks counted: {counted}")
            failures += [f"{name} {fault}: {one}" for one in found]
        seen.append(fault)
    return {"failures": failures, "numbers": {"faults": len(seen)}}


def held_for_ever_still_runs() -> dict[str, Any]:
    """An admission policy that never says yes slows the engine to one request at a time, and never stops it."""
    failures = []
    for _, asynchronous in both():
        day = engine.Day(ours(asynchronous, {"admission": "holds-for-ever"}), depth=depth(asynchronous))
        rows = mixed(30, 60)
        failures += attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
        if not day.scheduler.headway.metrics.counters["admissions_held", ""]:
            failures.append("no request was held")
    return {"failures": failures}


class Grammar:
    """A grammar that compiles until a certain time."""

    def __init__(self, day: engine.Day, ready_at: float) -> None:
        self._day, self._ready_at = day, ready_at

    @property
    def grammar(self) -> object | None:
        return object() if self._day.now >= self._ready_at else None


def blocked_requests_are_stepped_over() -> dict[str, Any]:
    """Requests whose grammar compiles hold no other up, run when it is there, and cost no scan of all of them."""
    from vllm.v1.request import RequestStatus

    failures, parked_most = [], 0
    blocked_status = next(status for status in RequestStatus if "STRUCTURED" in status.name or "GRAMMAR" in status.name)
    blocked = {f"r{index:05d}" for index in range(0, 60, 2)}
    for name, asynchronous in both():
        day = engine.Day(ours(asynchronous), depth=depth(asynchronous))
        rows = mixed(60, 60)
        plain_request, plain_schedule = day.request, day.scheduler.schedule

        def request(row: dict[str, Any], plain: Any = plain_request, day: engine.Day = day) -> Any:
            made = plain(row)
            if row["id"] in blocked:
                made.status = blocked_status
                made.structured_output_request = Grammar(day, row["at"] + 2.0)
            return made

        def schedule(*args: Any, plain: Any = plain_schedule, day: engine.Day = day) -> Any:
            nonlocal parked_most
            out = plain(*args)
            parked_most = max(parked_most, day.scheduler.headway.queue.parked)
            for running in day.scheduler.running:
                running.structured_output_request = None  # there is no grammar to advance: only its wait is real
            return out

        day.request, day.scheduler.schedule = request, schedule  # type: ignore[method-assign]
        found = attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
        for row in rows:
            waited = day.first_token.get(row["id"], 0.0) - row["at"]
            if row["id"] in blocked and waited < 2.0:
                found.append(f"{row['id']} ran before its grammar was there")
        failures += [f"{name}: {one}" for one in found]
    if parked_most < 10:
        failures.append(f"only {parked_most} were ever parked")
    return {"failures": failures, "numbers": {"parked_most": parked_most}}


def cached_long_prompts_go_first() -> dict[str, Any]:
    """A long prompt that the prefix cache holds goes before a shorter one that it does not."""
    failures = []
    chance = random.Random(0)
    long_one = [chance.randrange(3, 60) for _ in range(3000)]
    fresh = {f"f{index}": [chance.randrange(3, 60) for _ in range(400)] for index in range(5)}
    for name, asynchronous in both():
        scheduler = ours(
            asynchronous, {"ordering": "shortest-uncached-prefill-first"}, seats=1, prefix_caching=True, blocks=4096
        )
        day = engine.Day(scheduler, depth=depth(asynchronous), prefix_caching=True)
        rows = [{"id": "warm", "at": 0.0, "prompt": 3000, "output": 2, "tokens": long_one}]
        rows += [
            {"id": id_, "at": 0.001, "prompt": 400, "output": 40, "tokens": tokens} for id_, tokens in fresh.items()
        ]
        rows += [{"id": "again", "at": 0.5, "prompt": 3010, "output": 2, "tokens": [*long_one, *[5] * 10]}]
        day.run(rows)
        order = sorted(day.first_token, key=lambda id_: day.first_token[id_])
        waiting = [id_ for id_ in order if day.first_token[id_] > 0.5 and id_ != "warm"]
        after = waiting[: waiting.index("again")]
        if len(after) > 1:  # one may have been running when it came
            failures.append(f"{name}: {after} went before the cached one")
        if not scheduler.headway.prefix_hits.hit_tokens:
            failures.append(f"{name}: no hit was seen")
    return {"failures": failures}


def harm_makes_it_step_back() -> dict[str, Any]:
    """Longest first starves the short ones: the live FCFS estimate notices, and the order goes back, and says so."""

    class LongestFirst:
        def rank(self, request: Any) -> float:
            return -float(request.prompt_tokens)

    ORDERING["longest-first"] = LongestFirst
    failures, numbers = [], {}
    guard = {"budget_ms": 60_000, "harm_seconds": 3.0, "step_back_seconds": 1000.0}
    for ordering, harmful in (("longest-first", True), ("highest-response-ratio", False)):
        day = engine.Day(ours(False, {"ordering": ordering, "guard": guard}, seats=16))
        rows = [{**row, "output": 16} for row in mixed(1000, 45)]
        failures += attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
        counters = day.scheduler.headway.metrics.counters
        backs = int(counters["step_backs", ""])
        numbers[ordering] = backs
        if backs != int(harmful):
            failures.append(f"{ordering} suspended {backs} times")
    del ORDERING["longest-first"]
    return {"failures": failures, "numbers": numbers}


def fcfs_estimate_is_near() -> dict[str, Any]:
    """What the plug-in believes FCFS would have done, beside what stock FCFS does with the same requests."""
    failures, numbers = [], {}
    for seats in (16, 64):
        rows = [{**row, "output": 16} for row in mixed(1000, 60)]
        arrived = {row["id"]: row["at"] for row in rows}
        stock = engine.Day(engine.build(None, seats=seats)).run(rows)
        waits = sorted({id_: at - arrived[id_] for at, id_ in reversed(stock.admissions)}.values())
        true = waits[int(0.99 * len(waits))]
        day = engine.Day(ours(False, seats=seats)).run(rows)
        believed = day.scheduler.headway.harm.comparison.waits(day.now).fcfs
        numbers[f"{seats} seats"] = {"true_p99_seconds": round(true, 2), "believed": round(believed, 2)}
        if not 0.75 < believed / true < 1.33:
            failures.append(f"{seats} seats: believed {believed:.2f} s, true {true:.2f} s")
    return {"failures": failures, "numbers": numbers}


def mixed_load() -> dict[str, Any]:
    """The default against stock in overload: short requests wait less, long ones hardly more, nothing is slower."""
    numbers, failures = {}, []
    for name, asynchronous in both():
        rows = mixed(600, 55, seed=1)
        prompt = {row["id"]: row for row in rows}

        def means(day: engine.Day, prompt: dict[str, Any] = prompt) -> tuple[float, float, float]:
            waits = {id_: at - prompt[id_]["at"] for id_, at in day.first_token.items()}
            short = [w for id_, w in waits.items() if prompt[id_]["prompt"] <= 256]
            long = sorted(w for id_, w in waits.items() if prompt[id_]["prompt"] > 256)
            return sum(short) / len(short), long[int(0.99 * len(long))], day.now

        stock = means(engine.Day(engine.build(None, asynchronous=asynchronous), depth=depth(asynchronous)).run(rows))
        mine = means(engine.Day(ours(asynchronous), depth=depth(asynchronous)).run(rows))
        short, long, makespan = (b / a for a, b in zip(stock, mine, strict=True))
        numbers[name] = {"short_mean": round(short, 3), "long_p99": round(long, 3), "makespan": round(makespan, 3)}
        if not (short < 0.5 and long < 1.5 and makespan < 1.1):
            failures.append(f"{name}: ratios to stock {numbers[name]}")
    return {"failures": failures, "numbers": numbers}


def abort_storm() -> dict[str, Any]:
    """10,000 wait, and all but a hundred of their clients leave, in no order."""
    failures = []
    for name, asynchronous in both():
        day = engine.Day(ours(asynchronous, seats=16), depth=depth(asynchronous))
        rows = [{**row, "at": 0.0, "prompt": 20, "output": 3} for row in mixed(10_000, 1.0)]
        leaving = [row["id"] for row in rows[:9_900]]
        random.Random(0).shuffle(leaving)

        def storm(day: engine.Day, leaving: list[str] = leaving) -> None:
            if day.steps == 3:
                for request_id in leaving:
                    day.abort(request_id)

        day.before_step = storm
        found = attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
        failures += [f"{name}: {one}" for one in found]
    return {"failures": failures}


def attempt(check: Callable[[], list[str]]) -> list[str]:
    """What a check finds, or what it raised."""
    try:
        return check()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return [f"{type(error).__name__} in {where.name}, line {where.lineno}: {str(error)[:200]}"]


CHECKS: dict[str, Callable[[], dict[str, Any]]] = {
    check.__name__: check
    for check in (
        fcfs_is_stock,
        default_without_queue_is_stock,
        order_of_every_policy,
        chaos,
        odd_hints,
        policy_faults,
        held_for_ever_still_runs,
        blocked_requests_are_stepped_over,
        cached_long_prompts_go_first,
        harm_makes_it_step_back,
        fcfs_estimate_is_near,
        mixed_load,
        abort_storm,
    )
}


def run(checks: dict[str, Callable[[], dict[str, Any]]]) -> None:
    """Those named on the command line, or all; the findings on the last line."""
    sys.stdout = sys.stderr  # whatever a library prints must not get into the answer
    faulty_policies.register()
    findings: dict[str, Any] = {"vllm": vllm.__version__, "checks": {}}
    for name in sys.argv[1:] or checks:
        try:
            findings["checks"][name] = checks[name]()
        except Exception:
            findings["checks"][name] = {"failures": [traceback.format_exc()[-1500:]]}
    print("\n" + json.dumps(findings), file=sys.__stdout__)  # the last line: some versions log to stdout


if __name__ == "__main__":
    run(CHECKS)
