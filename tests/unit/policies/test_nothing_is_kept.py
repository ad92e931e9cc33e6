"""Who has ended is forgotten: no policy keeps a request, or its id, after its life, however it ended."""

from __future__ import annotations

import gc
from itertools import cycle
from weakref import WeakSet

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.policies.catalog import ADMISSION, ORDERING, PREDICTION, PREEMPTION, build
from headway.policies.contracts import BackfillingAdmission
from headway.scheduling.queue import Resumed
from headway.scheduling.scheduler import Policies, Scheduler

pytestmark = pytest.mark.slow

COSTS = ServiceCosts(1e-4, 2e-2)
ENDS = ("completed", "cancelled", "left", "preempted", "refused", "late", "passed")
FEW = 24  # who came last may still be known, as the last candidate or the last of a lane


class Id(str):
    """An id that can be watched."""


class Watched(Request):
    """A request that can be watched."""


def policies(ordering: str, admission: str, preemption: str, prediction: str) -> Policies:
    def told(_: object) -> int:
        return 7

    return Policies(
        build("ordering", ordering, costs=COSTS, seed=0),
        build("admission", admission, costs=COSTS, seed=0),
        build("preemption", preemption, costs=COSTS, seed=0),
        build("prediction", prediction, costs=COSTS, seed=0, truth=told),
    )


class Life:
    """Requests that come one by one, and end in every way there is."""

    def __init__(self, chosen: Policies, resumed: Resumed) -> None:
        self.brain = Scheduler(chosen, resumed=resumed)
        self.backfilling = chosen.admission if isinstance(chosen.admission, BackfillingAdmission) else None
        self.requests: WeakSet[Watched] = WeakSet()
        self.ids: WeakSet[Id] = WeakSet()
        self.now = 0.0

    def arrive(self, number: int) -> Watched:
        name = Id(f"request-{number}")
        # Sizes all over the place: lanes open and close.
        request = Watched(
            name, self.now, 1 + (number * 7_919) % 60_000, tenant=f"tenant {number % 3}", adapter=f"{number % 5}"
        )
        self.ids.add(name)
        self.requests.add(request)
        return request

    def live(self, number: int, end: str) -> None:
        brain = self.brain
        self.now += 0.5
        request = self.arrive(number)
        if end == "refused":
            brain.refuse(request, self.now, "there is no room")
            return
        brain.arrive(request, self.now)
        brain.head(self.now)
        self.now += 0.01
        if end == "cancelled":
            brain.cancel(request.id, self.now)
            return
        if end == "passed" and self.backfilling is not None:
            self.backfilling.passed(request)
        brain.take(request.id, self.now)
        request.produced_tokens = 1
        brain.first_token(request, self.now)
        if end == "left":
            brain.left(request, self.now)
            return
        if end in ("preempted", "late"):
            brain.preempted(request, self.now)
            brain.head(self.now)
            if end == "preempted":
                brain.take(request.id, self.now)
            else:
                if self.backfilling is not None:
                    self.backfilling.passed(request)
                brain.queue.remove(request.id)
        request.produced_tokens = 5
        brain.complete(request, self.now)

    def left_over(self) -> tuple[int, int]:
        gc.collect()
        return len(self.requests), len(self.ids)


BUNDLES = [
    *((name, "greedy", "latest-admitted", "histogram") for name in ORDERING),
    *((f"fair-share/{name}", "greedy", "latest-admitted", "histogram") for name in ORDERING),
    *((f"weighted-fair-queue/{name}", "greedy", "latest-admitted", "histogram") for name in ("fcfs", "ewsjf")),
    *((f"adapter-clusters/{name}", "greedy", "latest-admitted", "histogram") for name in ("fcfs", "ewsjf")),
    *(("fcfs", name, "latest-admitted", "histogram") for name in ADMISSION),
    *(("fcfs", f"backfill/{name}", "latest-admitted", "histogram") for name in ADMISSION),
    *(("fcfs", "greedy", name, "histogram") for name in PREEMPTION),
    *(("fcfs", "greedy", "latest-admitted", name) for name in PREDICTION),
    *(("fcfs", "greedy", "latest-admitted", f"conformal/{name}") for name in PREDICTION),
]


@pytest.mark.parametrize("resumed", ["front", "by-rank"])
@pytest.mark.parametrize("bundle", BUNDLES, ids="-".join)
def test_who_has_ended_is_forgotten(bundle: tuple[str, str, str, str], resumed: Resumed) -> None:
    life = Life(policies(*bundle), resumed)
    for number, end in zip(range(1, 500), cycle(ENDS), strict=False):
        life.live(number, end)
    requests, ids = life.left_over()
    assert requests <= FEW, f"{requests} requests are kept"
    assert ids <= FEW, f"{ids} ids are kept"


@pytest.mark.parametrize("ordering", [*ORDERING, *(f"fair-share/{name}" for name in ORDERING)])
def test_who_gave_up_while_nobody_was_let_in_is_forgotten(ordering: str) -> None:
    life = Life(policies(ordering, "greedy", "latest-admitted", "histogram"), "front")
    life.brain.arrive(life.arrive(0), 0.0)
    for number in range(1, 500):
        life.live(number, "cancelled")
    requests, ids = life.left_over()
    assert max(requests, ids) <= 200, f"{requests} requests and {ids} ids are kept"
