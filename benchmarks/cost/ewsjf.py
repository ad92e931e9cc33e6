"""What one decision and one partition cost, with FCFS and a priority heap such as vLLM's beside them, in one run.

Usage: python -m benchmarks.cost.ewsjf [--waiting 100000] [--decisions 3000]

A decision is what an engine asks for at each step: the clock has moved on, so the choice is made anew (`head`), one is
taken (`admit`, with its event), and one arrives (`arrive`, with its event). Times are CPU
seconds of the one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import heapq

import numpy as np

from benchmarks.cost.decision import COSTS, filled, sizes, timed
from headway.domain.request import Request
from headway.policies.contracts import OrderingPolicy
from headway.policies.lanes.partition import refine_and_prune
from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.ewsjf_authors import EwsjfAuthors
from headway.policies.ordering.ewsjf_published import EwsjfPublished
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.priority import Priority
from headway.policies.prediction.declared_max import DeclaredMax
from headway.scheduling.scheduler import Scheduler

LANES = 50


def microseconds(calls: list[float]) -> str:
    """Median of all, and the least p99 of three thirds: what else runs on the machine only ever adds."""
    thirds = np.array_split(np.array(calls) * 1e6, 3)
    return f"{np.median(np.concatenate(thirds)):>9.1f} {min(np.percentile(third, 99) for third in thirds):>9.1f}"


def measure(name: str, scheduler: Scheduler, decisions: int) -> None:
    now = 1e3
    choose, admit, arrive = [], [], []
    taken: list[Request] = []
    gc.collect()
    gc.disable()
    for number, size in enumerate(sizes(decisions, 1)):
        now += 0.02
        choose.append(timed(lambda: scheduler.head(now)))  # noqa: B023 - called at once
        admit.append(timed(lambda: taken.append(scheduler.admit(now))))  # noqa: B023
        if number >= 4:  # learned from, as on a replica: the cost fit and what hangs on it are part of the bill
            scheduler.first_token(taken.pop(0), now)
        request = Request(f"new-{number}", now, size, max_output_tokens=100)
        arrive.append(timed(lambda: scheduler.arrive(request, now)))  # noqa: B023
    gc.enable()
    print(f"{name:<36}{microseconds(choose)}{microseconds(admit)}{microseconds(arrive)}")


def measure_heap(waiting: int, decisions: int) -> None:
    """vLLM's priority queue: a heap of (priority, arrival, request), its head looked at, popped, pushed."""
    heap = [(0, number * 1e-3, number) for number in range(waiting)]
    heapq.heapify(heap)
    choose, admit, arrive = [], [], []
    for number in range(decisions):
        choose.append(timed(lambda: heap[0]))
        admit.append(timed(lambda: heapq.heappop(heap)))
        arrive.append(timed(lambda: heapq.heappush(heap, (0, 1e3 + number, waiting + number))))  # noqa: B023
    print(f"{'bare heap, as vLLM has':<36}{microseconds(choose)}{microseconds(admit)}{microseconds(arrive)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, default=100_000)
    parser.add_argument("--decisions", type=int, default=3_000)
    arguments = parser.parse_args()
    orderings: dict[str, OrderingPolicy] = {
        "fcfs": Fcfs(),
        "priority": Priority(),
        "highest-response-ratio": HighestResponseRatio(),
        "ewsjf": Ewsjf(costs=COSTS, lanes_max=LANES, spread_max=1.15),
        "ewsjf-published": EwsjfPublished(costs=COSTS, lanes_max=LANES, significance=1.5, relearn_requests=50_000),
        "ewsjf-authors": EwsjfAuthors(lanes=LANES, lane_tokens=2_400),
    }
    print(f"{arguments.waiting:,} waiting; microseconds, median and p99 of {arguments.decisions:,}")
    print(f"{'':<36}{'choose':>10}{'p99':>9}{'admit':>11}{'p99':>9}{'arrive':>10}{'p99':>10}")
    measure_heap(arguments.waiting, arguments.decisions)
    for name, ordering in orderings.items():
        scheduler = filled(ordering, DeclaredMax(), arguments.waiting)
        lanes = len(scheduler.queue._heads)
        measure(f"{name} ({lanes} lane{'s' if lanes != 1 else ''})", scheduler, arguments.decisions)
        if name == "ewsjf":
            assert isinstance(ordering, Ewsjf)
            lanes_of = ordering._lanes
            spans = tuple(lane.span for lane in lanes_of.router.lanes if not lane.bubble)
            lanes_of.adopt(spans)
            moved = timed(scheduler.queue.reconsider)
    print(f"moving {arguments.waiting:,} waiting requests to new lanes: {moved * 1e3:.0f} ms, between two decisions")
    for label, lengths in (("uniform in log", sizes(10_000, 2)), ("all different", list(range(1, 10_001)))):
        for what, options in (("ewsjf", {"spread_max": 1.5}), ("ewsjf-published", {})):
            took = [timed(lambda: refine_and_prune(lengths, lanes_max=LANES, **options)) for _ in range(15)]  # noqa: B023  # type: ignore[arg-type]
            print(f"partition of 10,000 sizes, {label}, {what}: median {np.median(took) * 1e3:.1f} ms, worst of 15 {max(took) * 1e3:.1f} ms")  # noqa: E501  # fmt: skip


if __name__ == "__main__":
    main()
