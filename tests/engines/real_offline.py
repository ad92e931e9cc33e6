"""Offline requests inside a real vLLM: they give way to online ones, and every answer has stock's tokens."""

from __future__ import annotations

from typing import Any

from tests.engines.feature_engine import SEATS, FeatureEngine, Rows, differing, prompt

OFFLINE = {"headway_class": "offline"}


def offline_gives_way(engine: FeatureEngine) -> dict[str, Any]:
    """Offline requests hold every seat as online ones come, which get all at once; all answers are right."""
    offline: Rows = [
        {"id": f"off{index}", "tokens": prompt(index, 150), "output": 40, "hints": OFFLINE}
        for index in range(SEATS + 2)
    ]
    online: Rows = [{"id": f"on{index}", "tokens": prompt(50 + index, 120), "output": 12} for index in range(2 * SEATS)]
    ids = [row["id"] for row in (*offline, *online)]
    engine.rule_stock()
    stock = engine.serve([*offline, *online])
    scheduler = engine.rule(ordering="shortest-prompt-first", offline={"share": 0.05, "burst_seconds": 60.0})
    shown: dict[str, Any] = {"displaced": 0, "beside": 0, "waited": 0}

    def meddle(step: int) -> None:
        names = {request.request_id[:2] for request in scheduler.running}
        if step == 25:
            shown["running"] = len(scheduler.running)
            for row in online:
                engine.add(row)
        waiting = [entry for entry in scheduler.headway.queue if entry.request_id.startswith("on")]
        shown["waited"] += step > 26 and bool(waiting) and names == {"of"}
        shown["beside"] += names == {"on", "of"}

    for row in offline:
        engine.add(row)
    mine = engine.drain(meddle)
    failures = differing(stock, mine, ids) + engine.leftovers()
    firsts = [id_ for id_ in mine.first if id_.startswith("on")]
    shown["displaced"] = scheduler.headway.metrics.counters.get(("offline_displaced", ""), 0)
    if shown["waited"]:
        failures.append("an online request waited while offline ones alone ran")
    if len(firsts) != len(online) or shown.get("running", 0) < 2:
        failures.append(f"the day was not as meant: {shown}")
    if scheduler.headway.offline._paused or scheduler.max_num_scheduled_tokens != 256:
        failures.append("a limit was not restored")
    return {"failures": failures, "shown": shown, "order": mine.first}
