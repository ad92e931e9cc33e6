"""What the search for alike KV blocks costs per 1,000 blocks: `python -m benchmarks.cost.fusion`.

Blocks of one layer of an 8B model (16 tokens, 8 KV heads, 128 wide: 16,384 numbers in keys and as many in values) are
drawn at random, so none is alike and every comparison is made. Processor time, the median of the rounds; with
OPENBLAS_NUM_THREADS=1 it is that of one thread.

Inside vLLM both halves are measured: the worker's comparison of blocks at their places, here of one layer, and what the
scheduler does to name them, whatever the layers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np

from headway.fusion.alike_groups import alike_groups
from headway.fusion.joint_encoder import directions
from headway.fusion.kv_blocks import Floats
from headway.fusion.representative_search import nearest_representatives
from headway.vllm_plugin.block_fuser import carry_out
from headway.vllm_plugin.fusion_messages import FusionOrder, PlaceOrder
from tests.support.fused_engine import FusedEngine, Request

NUMBERS = 16 * 8 * 128
BOUND = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000, help="new blocks of a step")
    parser.add_argument("--representatives", type=int, nargs="+", default=[100, 1_000, 4_000])
    parser.add_argument("--in-vllm", type=int, default=1_024, help="blocks of the requests that run inside vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    drawn = np.random.default_rng(0)
    new = [drawn.standard_normal((asked.blocks, NUMBERS), dtype=np.float32) for _ in range(2)]
    units = [directions(rows) for rows in new]
    per_thousand = 1e3 * 1_000 / asked.blocks
    spent = measured(lambda: [directions(rows) for rows in new], asked.rounds)
    print(f"directions: {spent * per_thousand:.0f} ms per 1,000 blocks and layer")
    for count in asked.representatives:
        kept = [directions(drawn.standard_normal((count, NUMBERS), dtype=np.float32)) for _ in range(2)]
        for places in (1, 64):
            there = (np.arange(asked.blocks) % places, np.arange(count) % places)
            spent = measured(lambda: nearest_representatives(units, kept, *there), asked.rounds)  # noqa: B023
            print(
                f"against {count:,} representatives at {places} places: "
                f"{spent * per_thousand:.0f} ms per 1,000 blocks and layer"
            )
    weights = np.ones(asked.blocks, np.int64)
    spent = measured(lambda: alike_groups(units, weights, BOUND), asked.rounds)
    print(f"against each other: {spent * per_thousand:.0f} ms per 1,000 blocks and layer")
    inside_vllm(asked.in_vllm, asked.rounds)


def inside_vllm(count: int, rounds: int) -> None:
    """So many blocks of requests that all run at once, 16 or 64 of them: none alike, then all."""
    for at_once, noise in ((16, 1.0), (64, 1.0), (64, 0.1)):
        places = count // at_once
        drawn = np.random.default_rng(0)
        text = drawn.standard_normal((places, 1, 2, NUMBERS), dtype=np.float32)
        own = drawn.standard_normal((places, at_once, 2, NUMBERS), dtype=np.float32)
        blocks = (noise * own + (1 - noise) * text).reshape(-1, 2, NUMBERS)
        layer = OneLayer(np.concatenate([blocks, np.zeros((places, 2, NUMBERS), np.float32)]))
        ids = np.arange(count).reshape(places, at_once).tolist()
        spares = tuple(range(count, count + places))
        order = FusionOrder(tuple(PlaceOrder(tuple(one), (1,) * at_once, 0) for one in ids), spares, BOUND)
        spent = measured(lambda: carry_out(order, [layer]), rounds)  # noqa: B023
        fused = sum(len(one.members) for one in carry_out(order, [layer]).fused)
        print(f"worker, {at_once} at a place, {fused:,} fused: {1e3 * spent:.0f} ms per {count:,} blocks and layer")
    spent = statistics.median(scheduler_seconds() for _ in range(rounds))
    print(f"scheduler: {1e3 * spent:.1f} ms to name 1,024 blocks of 64 requests")


class OneLayer:
    """(blocks, 2, numbers) in memory."""

    def __init__(self, halves: Floats) -> None:
        self.halves = halves

    def read(self, blocks: Sequence[int]) -> Floats:
        return self.halves[list(blocks)]

    def write(self, block: int, halves: Floats) -> None:
        self.halves[block] = halves


def scheduler_seconds() -> float:
    """Processor seconds of one order about 64 requests whose prompts were just computed."""
    engine = FusedEngine(blocks=4_000, blocks_per_step=4_096)
    for number in range(64):
        engine.admit(Request(f"r{number}", np.ones((3, 2, 66, 8), np.float32), 2, None))
    for one in engine.running:
        engine.tables[one.request_id].extend(engine.pool.get_new_blocks(17))
        one.num_computed_tokens = 64
    output = SimpleNamespace(scheduled_cached_reqs=SimpleNamespace(new_block_ids=[], resumed_req_ids=set()))
    began = time.process_time()
    order = engine.sharing.order(output)
    spent = time.process_time() - began
    assert order is not None
    assert sum(len(place.blocks) for place in order.places) == 1_024
    return spent


def measured(work: Callable[[], object], rounds: int) -> float:
    """Median processor seconds of one call."""
    spent = []
    for _ in range(rounds):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
