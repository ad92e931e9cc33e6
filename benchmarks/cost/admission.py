"""What one admission decision costs with 256 requests running: `python -m benchmarks.cost.admission`.

A full batch decodes step by step; at each step the same candidate asks, and every eighth step one request ends and
another takes its place. Processor time of this machine; median and mean over the steps are printed for each policy.
"""

from __future__ import annotations

import random
import statistics
import time

from headway.domain.costs import ServiceCosts
from headway.domain.event import Completed
from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.catalog import build
from headway.policies.prediction.histogram import Histogram
from headway.testing.scripted import ScriptedBatch

RUNNING = 256
STEPS = 400
POLICIES = ("overflow-probability", "peak-check", "past-future", "past-future-common-draws")


def main() -> None:
    for name in POLICIES:
        spent = measure(name)
        print(
            f"{name}: median {statistics.median(spent) * 1e6:.0f} µs, mean {statistics.mean(spent) * 1e6:.0f} µs, "
            f"p99 {sorted(spent)[int(0.99 * len(spent))] * 1e6:.0f} µs for {RUNNING} running"
        )


def measure(name: str) -> list[float]:
    lots = random.Random(1)
    predictor = Histogram()
    for number in range(2_000):
        request = Request(-1 - number, 0.0, 500)
        predictor.observe(Completed(request, 0.0, 1 + int(lots.expovariate(1 / 300))))

    def fresh(number: int, produced_tokens: int) -> Request:
        request = Request(number, 0.0, lots.randint(10, 2_000), produced_tokens=produced_tokens)
        request.estimate = predictor.predict(request)
        return request

    batch = ScriptedBatch([fresh(number, lots.randint(1, 500)) for number in range(RUNNING)])
    memory = MemoryView(2_000, 20_000, 16)
    policy = build("admission", name, costs=ServiceCosts(1e-4, 1e-2), seed=0)
    candidate = fresh(RUNNING, 0)
    spent = []
    for step in range(STEPS):
        batch.decode()
        if step % 8 == 0:
            batch.leave(batch.running()[lots.randrange(RUNNING)])
            batch.join(fresh(RUNNING + 1 + step, 0))
        began = time.thread_time()
        policy.hold_steps(candidate, batch, memory, 0.0)
        spent.append(time.thread_time() - began)
    return spent[1:]  # the first builds everything


if __name__ == "__main__":
    main()
