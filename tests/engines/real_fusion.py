"""Fusion inside vLLM on the real engine: blocks really free, answers within the bound, nothing held is altered."""

from __future__ import annotations

from typing import Any

import torch

from headway.vllm_plugin import block_fuser
from tests.engines.feature_engine import Day, FeatureEngine, Rows, differing, prompt

TIGHT, LOOSE = 0.999, 0.3  # the first is met by copies only, within float32; the second by much else of random weights


def connector() -> Any:
    """What `vllm.LLM(kv_transfer_config=…)` takes."""
    from vllm.config import KVTransferConfig

    return KVTransferConfig(
        kv_connector="FusionConnector",
        kv_connector_module_path="headway.vllm_plugin.fusion_connector",
        kv_role="kv_both",
    )


def copies(count: int, **more: Any) -> Rows:
    """The same prompt several times, each with blocks of its own, as requests that may not read the prefix cache have.

    Answers have different lengths, so that some end while others share.
    """
    sampling = {"skip_reading_prefix_cache": True}
    return [
        {"id": f"c{index}", "tokens": prompt(1, 200), "output": 14 + 5 * index, "sampling": sampling, **more}
        for index in range(count)
    ]


def behind_beginnings(count: int) -> Rows:
    """The same 128 tokens at equal places behind different beginnings: alike, but no copies."""
    return [
        {"id": f"b{index}", "tokens": prompt(100 + index, 32) + prompt(2, 128) + prompt(200 + index, 20), "output": 24}
        for index in range(count)
    ]


def alike_prompts_share_blocks(engine: FeatureEngine) -> dict[str, Any]:
    """Copies of a prompt free blocks while they run, and each answer is stock's."""
    rows = [*copies(3), {"id": "other", "tokens": prompt(3, 150), "output": 30}]
    free: dict[str, list[int]] = {"stock": [], "fused": []}
    engine.rule_stock()
    stock = engine.serve(rows, lambda _: free["stock"].append(free_blocks(engine.core)))
    sharing = engine.rule(fusion={"bound": TIGHT}).headway.sharing
    mine = engine.serve(rows, lambda _: free["fused"].append(free_blocks(engine.core)))
    failures = differing(stock, mine, [row["id"] for row in rows]) + engine.leftovers()
    if (sharing.fused_blocks, sharing.freed_blocks) != (18, 12):  # six full blocks of each of three, kept once
        failures.append(f"{sharing.fused_blocks} blocks were fused and {sharing.freed_blocks} freed")
    saved = [ours - theirs for ours, theirs in zip(free["fused"], free["stock"], strict=True)]
    if max(saved) != 12 or min(saved) < 0 or not sharing.on:
        failures.append(f"step by step so many more blocks were free than without fusion: {saved}")
    return {"failures": failures, "numbers": {"saved": max(saved)}}


def nothing_held_is_altered(engine: FeatureEngine) -> dict[str, Any]:
    """Under a loose bound: bytes that are hashed or shared stay, and no exact request reads what was fused."""
    rows = behind_beginnings(4)
    exact = {"headway_exact_kv": True}
    sharing = engine.rule(fusion={"bound": LOOSE}).headway.sharing
    held: dict[int, tuple[Any, bytes]] = {}
    failures: list[str] = []

    def compare(step: int) -> None:
        now = promised(engine.core)
        for number, (promise, data) in now.items():
            if number in held and held[number][0] == promise and held[number][1] != data:
                failures.append(f"step {step}: block {number} was altered")
        held.clear()
        held.update(now)

    fused = engine.serve(rows, compare)
    failures += engine.leftovers()
    if not sharing.fused_blocks or not sharing.on:
        failures.append("nothing was fused")
    longer: Rows = [
        {"id": f"l{row['id']}", "tokens": [*row["tokens"], *fused.tokens[row["id"]][0], 5], "output": 6, "hints": exact}
        for row in rows
    ]  # its prefix cache would hold the fused request's last blocks, if they were promised to others
    after = engine.serve(longer)
    engine.rule_stock()
    uncached: Rows = [{**row, "sampling": {"skip_reading_prefix_cache": True}} for row in longer]
    failures += differing(engine.serve(uncached), after, [row["id"] for row in longer])
    return {"failures": failures[:5], "numbers": {"fused": sharing.fused_blocks, "freed": sharing.freed_blocks}}


def fused_preempted_and_resumed(engine: FeatureEngine) -> dict[str, Any]:
    """A fused request that is preempted computes its own KV again, has its own salt back, and ends as stock's does."""
    rows = copies(3)
    engine.rule_stock()
    stock = engine.serve(rows)
    scheduler = engine.rule(fusion={"bound": TIGHT})
    taken: list[Any] = []
    salts: list[Any] = []

    def meddle(step: int) -> None:
        if step == 8:
            taken.append(scheduler.running.pop())
            salts.append(taken[0].cache_salt)
            scheduler._preempt_request(taken[0], 0.0)
            salts.append(taken[0].cache_salt)

    mine = engine.serve(rows, meddle)
    failures = differing(stock, mine, [row["id"] for row in rows]) + engine.leftovers()
    if not salts or not str(salts[0]).startswith("headway-fused-") or salts[1] is not None:
        failures.append(f"its salts were {salts}")
    return {"failures": failures}


def some_stay_exact(engine: FeatureEngine) -> dict[str, Any]:
    """Requests with the hint, and those of clients with cache salts of their own, are not compared."""
    failures = []
    for more in ({"hints": {"headway_exact_kv": True}}, None):
        sharing = engine.rule(fusion={"bound": TIGHT}).headway.sharing
        rows = copies(3, **more) if more else [{**row, "salt": row["id"]} for row in copies(3)]
        engine.serve(rows)
        if sharing.compared_blocks or not sharing.on:
            failures.append(f"{sharing.compared_blocks} blocks were compared under {more or 'salts'}")
    return {"failures": failures + engine.leftovers()}


def a_fault_ends_fusion(engine: FeatureEngine) -> dict[str, Any]:
    """The worker raises in the midst of its work: nothing is fused from then on, and each answer is stock's."""
    rows = copies(3)
    engine.rule_stock()
    stock = engine.serve(rows)
    sharing = engine.rule(fusion={"bound": TIGHT}).headway.sharing
    averaged = block_fuser._averaged

    def fails(*given: Any) -> Any:
        raise MemoryError("no room")
        yield

    block_fuser._averaged = fails
    try:
        mine: Day = engine.serve(rows)
    finally:
        block_fuser._averaged = averaged
    failures = differing(stock, mine, [row["id"] for row in rows]) + engine.leftovers()
    if sharing.on or sharing.fused_blocks or not sharing.compared_blocks:
        failures.append(f"on: {sharing.on}, fused {sharing.fused_blocks}, compared {sharing.compared_blocks}")
    return {"failures": failures}


def free_blocks(core: Any) -> int:
    return int(core.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def promised(core: Any) -> dict[int, tuple[Any, bytes]]:
    """Bytes of blocks that hold more than one request's KV, or that the prefix cache names; by block and promise.

    A promise begins anew with another hash or other holders.
    """
    scheduler = core.scheduler
    caches = core.model_executor.driver_worker.worker.model_runner.kv_caches
    sharers: dict[int, list[str]] = {}
    computed = set()
    for request in scheduler.running:
        table = scheduler.headway.sharing._tables.of(request)
        for block in table:
            sharers.setdefault(block.block_id, []).append(request.request_id)
        computed.update(block.block_id for block in table[: request.num_computed_tokens // scheduler.block_size])
    found = {}
    for block in scheduler.kv_cache_manager.block_pool.blocks:
        shared = sorted(sharers.get(block.block_id, []))
        if block.block_id in computed and (block.block_hash is not None or len(shared) > 1):
            data = b"".join(cache[block.block_id].contiguous().view(torch.uint8).numpy().tobytes() for cache in caches)
            found[block.block_id] = ((block.block_hash, shared[0]), data)
    return found
