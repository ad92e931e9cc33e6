"""Days for vLLM's real scheduler in virtual time: arrivals, scheduler, and what must hold at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from headway.vllm_plugin import Scheduler
from tests.support import virtual_engine as engine

Rows = list[dict[str, Any]]


def ours(asynchronous: bool, config: dict[str, Any] | None = None, **options: Any) -> Any:
    """Our scheduler; no policy or prefix lookup is ever too slow, since a test machine may be busy with others."""
    headway = {"metrics_dir": "", "guard": {"budget_ms": 60_000}, **(config or {})}
    scheduler = engine.build(Scheduler, asynchronous=asynchronous, additional={"headway": headway}, **options)
    if scheduler.headway.prefix_hits is not None:
        scheduler.headway.prefix_hits._clock = lambda: 0.0
    return scheduler


def depth(asynchronous: bool) -> int:
    return 2 if asynchronous else 1


def mixed(requests: int, rate: float, seed: int = 0) -> Rows:
    """80 % short, 20 % long, Poisson arrivals, a priority each."""
    chance, at, rows = random.Random(seed), 0.0, []
    for index in range(requests):
        at += chance.expovariate(rate)
        short = chance.random() < 0.8
        prompt, output = (32, 256), (8, 64)
        if not short:
            prompt, output = (1500, 3000), (64, 256)
        rows.append(
            {
                "id": f"r{index:05d}",
                "at": at,
                "prompt": chance.randint(*prompt),
                "output": chance.randint(*output),
                "priority": chance.randint(-3, 3),
                "hints": {"headway_tenant": f"t{chance.randint(0, 3)}"},
            }
        )
    return rows


def both() -> Iterator[tuple[str, bool]]:
    yield "sync", False
    yield "async", True


def conserved(day: engine.Day, rows: Rows, blocks: int) -> list[str]:
    """Each request ended once, with all its tokens, or was aborted; nothing is left anywhere."""
    failures = []
    for row in rows:
        ends = day.ends.get(row["id"], 0)
        if row["id"] in day.aborted:
            if ends > 1:
                failures.append(f"{row['id']} was aborted and ended {ends} times")
        elif ends != 1:
            failures.append(f"{row['id']} ended {ends} times")
        elif day.produced[row["id"]] != row["output"]:
            failures.append(f"{row['id']} got {day.produced[row['id']]} of {row['output']} tokens")
    if leaked := day.blocks_leaked(blocks):
        failures.append(f"{leaked} KV blocks leaked")
    headway = getattr(day.scheduler, "headway", None)
    if headway is not None:
        book, batch = headway.book, headway.book.batch
        left = (len(headway.queue), len(book.entries), batch.size, len(headway.policies), len(batch.prefilling))
        if any(left):
            failures.append(f"the books are not empty at the end of the day: {left}")
    return failures[:5]
