"""What an arrival, an admission and a cancellation cost under each order, beside fcfs in the same run.

    python -m benchmarks.cost.decision [--waiting 100 1000 10000 100000] [--orders fcfs …]
        [--write docs/results/priced-work-measured.md]

Through the scheduler, events and prediction included, as a shell asks: somebody arrives (`arrive`); the clock has moved
on, the choice is made anew and the head taken (`head`, `admit`); somebody who waits leaves (`cancel`). So many wait all
the time. All orders have the same predictor, and take turns at every decision, so that a disturbance hits all of them.
Processor time of the one thread, so that a busy machine does not count.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.page_tables import show
from headway.bench.progress import progress
from headway.domain.costs import ServiceCosts
from headway.domain.event import Completed
from headway.domain.request import Request, RequestId
from headway.policies.admission.greedy import Greedy
from headway.policies.catalog import ORDERING
from headway.policies.contracts import LengthPredictor, OrderingPolicy
from headway.policies.ordering.priced_work import PricedWork
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.prediction.histogram import Histogram
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Policies, Scheduler

COSTS = ServiceCosts(prefill_seconds_per_token=3e-5, decode_seconds_per_token=0.01)
ORDERS = ("fcfs", "highest-response-ratio", "smallest-volume-first", "ewsjf", "priced-work")
CALLS = ("arrival", "choice and admission", "cancellation")
STEP_SECONDS = 0.02


def sizes(count: int, seed: int) -> list[int]:
    """Prompts over the whole range, so that all lanes are filled."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(16), np.log(120_000), count)).astype(int).tolist()  # type: ignore[no-any-return]


def filled(ordering: OrderingPolicy, prediction: LengthPredictor, waiting: int) -> Scheduler:
    """A scheduler with so many waiting, a millisecond between arrivals."""
    scheduler = Scheduler(Policies(ordering, Greedy(), LatestAdmitted(), prediction))
    for number, size in enumerate(sizes(waiting, 0)):
        scheduler.arrive(Request(number, number * 1e-3, size, max_output_tokens=100), number * 1e-3)
    return scheduler


def timed(call: Callable[[], object]) -> float:
    """Processor seconds of this thread."""
    began = time.thread_time()
    call()
    return time.thread_time() - began


class Counter:
    """One order with so many waiting; `took` has the seconds of every call of a kind."""

    def __init__(self, order: str, waiting: int) -> None:
        self._chance = random.Random(1)
        ordering = bundle(ordering=order, costs=COSTS, seed=0).ordering
        self._scheduler = filled(ordering, taught(), waiting)
        self._known: list[RequestId] = list(range(waiting))
        self._admitted: set[RequestId] = set()
        self.took: dict[str, list[float]] = {call: [] for call in CALLS}

    def turn(self, number: int, size: int, now: float) -> None:
        """Two come, one is let in and one leaves."""
        for half in (0, 1):
            request = Request(f"{number}-{half}", now, size, max_output_tokens=100)
            self._clock("arrival", lambda: self._scheduler.arrive(request, now))  # noqa: B023 - called at once
            self._known.append(request.id)
        taken: list[Request] = []
        self._clock("choice and admission", lambda: taken.append(self._next(now)))
        self._admitted.add(taken[0].id)
        self._scheduler.first_token(taken[0], now)  # learned from, as on a replica
        taken[0].produced_tokens = self._chance.randint(1, 100)
        self._scheduler.complete(taken[0], now)
        leaver = self._leaver()
        self._clock("cancellation", lambda: self._scheduler.cancel(leaver, now))

    @property
    def lanes(self) -> int:
        """In which somebody waits."""
        return len(self._scheduler.queue.lane_sizes())

    def _next(self, now: float) -> Request:
        assert self._scheduler.head(now) is not None
        return self._scheduler.admit(now)

    def _leaver(self) -> RequestId:
        """Anybody of those who wait."""
        while True:
            place = self._chance.randrange(len(self._known))
            self._known[place], self._known[-1] = self._known[-1], self._known[place]
            chosen = self._known.pop()
            if chosen not in self._admitted:
                return chosen

    def _clock(self, call: str, made: Callable[[], object]) -> None:
        self.took[call].append(timed(made))


def taught() -> Histogram:
    """A predictor that has seen outputs of all lengths behind prompts of all lengths."""
    chance, predictor = random.Random(2), Histogram()
    for number, size in enumerate(sizes(2_000, 3)):
        done = Request(f"seen-{number}", 0.0, size, max_output_tokens=100)
        predictor.observe(Completed(done, 0.0, chance.randint(1, 100)))
    return predictor


def measure(waiting: int, orders: Sequence[str], turns: int, on_done: Callable[[], None]) -> dict[str, Counter]:
    """Every order with so many waiting, in turn."""
    counters = {order: Counter(order, waiting) for order in orders}
    ordered = list(counters.values())
    now = waiting * 1e-3
    gc.collect()
    gc.disable()
    for number, size in enumerate(sizes(turns, 1)):
        now += STEP_SECONDS
        for place in range(len(ordered)):  # each begins a turn as often as all others: caches are cold then
            ordered[(place + number) % len(ordered)].turn(number, size, now)
        on_done()
    gc.enable()
    return counters


def catching_up(waiting: int) -> float:
    """Seconds of the dearest admission under priced-work: of the first to come, whose work is that of all others.

    The shadow queue, in which nobody may pass it, then lets in all others at once.
    """
    scheduler = Scheduler(Policies(PricedWork(), Greedy(), LatestAdmitted(), DeclaredMax()))
    scheduler.arrive(Request("large", 0.0, 120_000, max_output_tokens=8_000), 0.0)
    for number in range(waiting):
        scheduler.arrive(Request(number, 1e-3, 16, max_output_tokens=1), 1e-3)
    for _ in range(waiting):
        scheduler.admit(2e-3)
    return timed(lambda: scheduler.admit(2e-3))


def table(found: dict[int, dict[str, Counter]]) -> str:
    """A line an order and call, a column a number of waiting: µs in the median, at p99, and the median's ratio."""
    heads = ("call", "order", *(f"{waiting:,} waiting" for waiting in found))
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(found)]
    orders = list(next(iter(found.values())))
    for call in CALLS:
        for order in orders:
            cells = [told(counters[order].took[call], counters[orders[0]].took[call]) for counters in found.values()]
            lines.append(f"| {call} | {order} | " + " | ".join(cells) + " |")
    lanes = [
        "heads to choose among",
        "",
        *(" ".join(str(c.lanes) for c in counters.values()) for counters in found.values()),
    ]
    return "\n".join([*lines, "| " + " | ".join(lanes) + " |"])


def told(took: Sequence[float], first: Sequence[float]) -> str:
    median, p99 = np.percentile(took, [50, 99]) * 1e6
    return f"{median:.1f}, {p99:.1f}, {median / (np.median(first) * 1e6):.1f}×"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument(
        "--orders", nargs="+", choices=list(ORDERING), default=list(ORDERS), help="the first is the measure"
    )
    parser.add_argument("--turns", type=int, default=2_000)
    parser.add_argument("--write", type=Path, help="the page with a place for the table `cost`; else it is printed")
    asked = parser.parse_args()
    with progress("measuring", len(asked.waiting) * asked.turns) as on_done:
        found = {waiting: measure(waiting, asked.orders, asked.turns, on_done) for waiting in asked.waiting}
    worst = ", ".join(f"{1e3 * catching_up(waiting):.2f} ms with {waiting:,}" for waiting in asked.waiting)
    show({"cost": f"{table(found)}\n\nDearest admission under priced-work: {worst} waiting."}, asked.write)


if __name__ == "__main__":
    main()
