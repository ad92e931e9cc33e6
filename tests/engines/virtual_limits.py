"""What the plug-in changes of a step beside the order, on vLLM's real scheduler in virtual time: budgets, displacement.

`virtual_features` runs these checks with all others.
"""

from __future__ import annotations

import random
from typing import Any

from tests.engines.virtual_checks import attempt
from tests.engines.virtual_days import Rows, both, conserved, depth, mixed, ours
from tests.support import virtual_engine as engine

BOUND_SECONDS = 0.016


def prompts_keep_to_their_budget() -> dict[str, Any]:
    """`tuning = prefill-budget`: once steps are known, none with decodes and prompts takes longer than the bound."""
    failures, numbers = [], {}
    for name, asynchronous in both():
        longest: dict[str, float] = {}
        for tuning in ("off", "prefill-budget"):
            bound = {"tpot_seconds": BOUND_SECONDS} if tuning != "off" else {}
            scheduler = ours(asynchronous, {"tuning": tuning, **bound}, blocks=1200)
            day = engine.Day(scheduler, depth=depth(asynchronous), before_step=leaving(random.Random(4)))
            rows = mixed(200, 40, seed=4)
            found = attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 1200))
            failures += [f"{name} {tuning}: {one}" for one in found]
            longest[tuning] = max(seconds(given) for given in day.step_log[150:] if is_mixed(given))
            if scheduler.headway.policies.disabled or scheduler.max_num_scheduled_tokens != 1024:
                failures.append(f"{name} {tuning}: policies disabled, or the budget was not restored")
        numbers[name] = {tuning: round(found, 4) for tuning, found in longest.items()}
        if longest["prefill-budget"] > 1.02 * BOUND_SECONDS or longest["off"] < 1.5 * BOUND_SECONDS:
            failures.append(f"{name}: the longest steps with decodes and prompts took {numbers[name]} s")
    return {"failures": failures, "numbers": numbers}


def seconds(given: dict[str, int]) -> float:
    return engine.linear_cost(sum(given.values()), len(given))


def is_mixed(given: dict[str, int]) -> bool:
    return 1 in given.values() and max(given.values()) > 1


def leaving(chance: random.Random) -> Any:
    def meddle(day: engine.Day) -> None:
        if chance.random() < 0.03 and day.scheduler.requests:
            day.abort(chance.choice(sorted(day.scheduler.requests)))

    return meddle


def urgent_ones_take_the_place_of_others() -> dict[str, Any]:
    """`displace`: urgent requests wait less than they do without it, no request is lost, none goes more than twice."""
    failures, numbers = [], {}
    for name, asynchronous in both():
        for blocks, seats in ((4096, 8), (230, 32)):
            waits: dict[str, float] = {}
            for displace in ("off", {"times": 2, "cooldown_seconds": 0.05}):
                config = {"ordering": "priority", "preemption": "least-sunk-work", "displace": displace}
                try:
                    scheduler = ours(asynchronous, config, blocks=blocks, seats=seats)
                except ValueError as refused:  # old versions, with asynchronous scheduling
                    numbers[name] = {"left out": str(refused)}
                    if not asynchronous or "cannot preempt a request between two steps" not in str(refused):
                        failures.append(str(refused))
                    break
                day = engine.Day(scheduler, depth=depth(asynchronous), before_step=leaving(random.Random(6)))
                rows = [{**row, "priority": 0 if index % 10 == 0 else 5} for index, row in enumerate(mixed(150, 40, 6))]
                found = attempt(lambda day=day, rows=rows, blocks=blocks: conserved(day.run(rows), rows, blocks))
                failures += [f"{name} {blocks} blocks: {one}" for one in found]
                urgent = [row for row in rows if row["priority"] == 0 and row["id"] in day.first_token]
                mean = sum(day.first_token[row["id"]] - row["at"] for row in urgent) / len(urgent)
                waits[str(displace != "off")] = mean
                gone = scheduler.headway.metrics.counters.get(("displaced", ""), 0)
                wrong = gone > 0 if displace == "off" else gone < 4 and seats == 8
                if wrong or scheduler.headway.policies.disabled:
                    failures.append(f"{name} {blocks} blocks, displace {displace}: {gone} were displaced")
                numbers[f"{name} {blocks} blocks, displaced, {displace}"] = gone
                if gone > 2 * len(rows):
                    failures.append(f"{name} {blocks} blocks: {gone} were displaced, some more than twice")
            else:
                numbers[f"{name} {blocks} blocks"] = {key: round(value, 3) for key, value in waits.items()}
                if seats == 8 and waits["True"] > 0.7 * waits["False"]:  # else memory is what is short
                    failures.append(f"{name} {blocks} blocks: urgent ones waited {waits} s")
    return {"failures": failures, "numbers": numbers}


def offline_prompts_that_wait_keep_their_seats() -> dict[str, Any]:
    """Offline prompts left out of a scan still have their seats: as many online ones come as there are others."""
    failures = []
    for name, asynchronous in both():
        scheduler = ours(asynchronous, {"ordering": "fcfs"}, seats=16)
        most = 0

        def meddle(day: engine.Day) -> None:
            nonlocal most
            most = max(most, len(day.scheduler.running))

        rows: Rows = [
            {"id": f"off{index}", "at": 0.0, "prompt": 3000, "output": 4, "hints": {"headway_class": "offline"}}
            for index in range(4)
        ]
        rows += [{"id": f"on{index}", "at": 0.4, "prompt": 20, "output": 30} for index in range(16)]
        day = engine.Day(scheduler, depth=depth(asynchronous), before_step=meddle)
        failures += [
            f"{name}: {one}" for one in attempt(lambda day=day, rows=rows: conserved(day.run(rows), rows, 4096))
        ]
        if most > 16:
            failures.append(f"{name}: {most} ran on 16 seats")
        if scheduler.headway.engine.seats != 16:
            failures.append(f"{name}: {scheduler.headway.engine.seats} seats are left")
    return {"failures": failures}


LIMITS = (
    prompts_keep_to_their_budget,
    urgent_ones_take_the_place_of_others,
    offline_prompts_that_wait_keep_their_seats,
)
