"""Speculative decoding under our queue on a real vLLM: checks of `real_features`."""

from __future__ import annotations

from typing import Any

from vllm.sampling_params import StructuredOutputsParams

from tests.engines.feature_engine import FeatureEngine, Rows, differing, prompt


def drafts_by_n_gram(engine: FeatureEngine) -> dict[str, Any]:
    """Speculative decoding: tokens as stock's under every order, and drafts are accepted where a grammar repeats."""
    forced = {"structured_outputs": StructuredOutputsParams(regex="(ab){12}"), "ignore_eos": False, "detokenize": True}
    rows: Rows = [
        {
            "id": f"d{index}",
            "tokens": (prompt(index % 3, 12) * 30)[: 60 + 40 * index],
            "output": 24,
            "sampling": forced if index % 2 else {},
        }
        for index in range(8)
    ]
    engine.rule_stock()
    stock = engine.serve(rows)
    failures, numbers = [], {}
    for ordering in ("fcfs", "shortest-prompt-first", "smallest-volume-first"):
        scheduler = engine.rule(ordering=ordering)
        accepted, before = 0, {}

        def meddle(step: int, scheduler: Any = scheduler) -> None:
            nonlocal accepted, before
            after = {r.request_id: r.num_output_tokens for r in scheduler.running}
            accepted += sum(max(0, tokens - before.get(id_, 0) - 1) for id_, tokens in after.items())
            before = after

        mine = engine.serve(rows, meddle)
        numbers[ordering] = {"drafts_accepted": accepted}
        failures += [f"{ordering}: {one}" for one in differing(stock, mine, [row["id"] for row in rows])]
        failures += [f"{ordering}: {one}" for one in engine.leftovers()]
        failures += [] if accepted else [f"{ordering}: no draft was accepted"]
    return {"failures": failures, "numbers": numbers}


def aborts_while_drafting(engine: FeatureEngine) -> dict[str, Any]:
    """Clients leave at every step while drafts are out: the others have stock's tokens."""
    rows: Rows = [{"id": f"a{index}", "tokens": (prompt(index, 10) * 9)[:80], "output": 24} for index in range(12)]
    engine.rule_stock()
    stock = engine.serve(rows)
    engine.rule()
    gone = [row["id"] for row in rows[::3]]

    def meddle(step: int) -> None:
        if step % 5 == 2 and step // 5 < len(gone):
            engine.engine.abort_request([gone[step // 5]])

    mine = engine.serve(rows, meddle)
    return {"failures": differing(stock, mine, [r["id"] for r in rows if r["id"] not in gone]) + engine.leftovers()}
