"""What the search for alike KV blocks costs per 1,000 blocks: `python -m benchmarks.cost.fusion`.

Blocks of one layer of an 8B model (16 tokens, 8 KV heads, 128 wide: 16,384 numbers in keys and as many in values) are
drawn at random, so none is alike and every comparison is made. Processor time, the median of the rounds; with
OPENBLAS_NUM_THREADS=1 it is that of one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from headway.fusion.alike_groups import alike_groups
from headway.fusion.joint_encoder import directions
from headway.fusion.representative_search import nearest_representatives

NUMBERS = 16 * 8 * 128
BOUND = 0.9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000, help="new blocks of a step")
    parser.add_argument("--representatives", type=int, nargs="+", default=[100, 1_000, 4_000])
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
