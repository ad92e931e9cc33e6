"""Budgets of prompts and displacement inside a real vLLM: every answer has stock's tokens and ends once."""

from __future__ import annotations

from typing import Any

from tests.engines.feature_engine import SEATS, FeatureEngine, Rows, differing, prompt

BOUND_SECONDS = 1e-6
"""Below any step: each prompt beside decodes gets its least share."""


def prompts_keep_to_their_budget(engine: FeatureEngine) -> dict[str, Any]:
    """`tuning = prefill-budget`: once steps are known, prompts beside decodes get the least of a step."""
    rows: Rows = [
        {"id": f"r{index}", "tokens": prompt(70 + index, 20 if index % 3 else 400), "output": 60} for index in range(12)
    ]
    ids = [row["id"] for row in rows]
    engine.rule_stock()
    stock = engine.serve(rows)
    scheduler = engine.rule(ordering="fcfs", tuning="prefill-budget", tpot_seconds=BOUND_SECONDS)
    budgets: list[float] = []

    def meddle(step: int) -> None:
        if scheduler.headway.meter.is_known:
            budgets.append(scheduler.headway.metrics.gauges["step_token_budget", ""])

    mine = engine.serve(rows, meddle)
    failures = differing(stock, mine, ids) + engine.leftovers()
    if min(budgets, default=256) > 8 + SEATS or scheduler.max_num_scheduled_tokens != 256:
        failures.append(
            f"the least budget was {min(budgets, default=None)}, in the end {scheduler.max_num_scheduled_tokens}"
        )
    return {"failures": failures, "shown": {"steps known": len(budgets), "least budget": min(budgets, default=None)}}


def urgent_ones_take_the_place_of_others(engine: FeatureEngine) -> dict[str, Any]:
    """`displace` where every seat is taken: urgent requests run in the step after they came; off, they wait."""
    low: Rows = [
        {"id": f"low{index}", "tokens": prompt(index, 60), "output": 90, "priority": 5} for index in range(SEATS + 2)
    ]
    urgent: Rows = [{"id": f"urgent{index}", "tokens": prompt(40 + index, 50), "output": 6} for index in range(3)]
    ids = [row["id"] for row in (*low, *urgent)]
    engine.rule_stock()
    stock = engine.serve([*low, *urgent])
    failures: list[str] = []
    shown: dict[str, Any] = {}
    for displace in ("off", {"times": 2, "cooldown_seconds": 0}):
        scheduler = engine.rule(ordering="priority", displace=displace)
        scheduler.headway.meter.measures = True
        ran: list[int] = []

        def meddle(step: int, scheduler: Any = scheduler, ran: list[int] = ran) -> None:
            if step == 70:
                for row in urgent:
                    engine.add(row)
            if step == 72:
                ran.append(sum(request.request_id.startswith("urgent") for request in scheduler.running))

        for row in low:
            engine.add(row)
        mine = engine.drain(meddle)
        gone = scheduler.headway.metrics.counters.get(("displaced", ""), 0)
        shown[f"displace {displace}"] = {"ran": ran, "displaced": gone}
        failures += differing(stock, mine, ids) + engine.leftovers()
        if ran != ([0] if displace == "off" else [3]) or (gone >= 3) == (displace == "off"):
            failures.append(f"displace {displace}: {ran} urgent ones ran two steps after they came, {gone} displaced")
    return {"failures": failures, "shown": shown}
