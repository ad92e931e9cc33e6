"""Fair share's accounts in plain dictionaries that forget nothing, beside the policy on drawn days."""

from __future__ import annotations

from random import Random

import pytest

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Cancelled, Completed, FirstToken, Preempted, Refused
from headway.domain.request import Request
from headway.policies.ordering.fair_share import FairShare

WEIGHTS = {"t1": 2.0, "t2": 0.5}


class Books:
    """VTC's counters: a prompt token costs 1, an output token 2, over the tenant's weight."""

    def __init__(self) -> None:
        self.service: dict[str, float] = {}
        self.waiting: dict[str, list[Request]] = {}
        self.running: list[Request] = []
        self.expected: dict[object, float] = {}
        self.last: str | None = None

    def level(self) -> float:
        """Where a newcomer starts."""
        behind = [self.service[tenant] for tenant, some in self.waiting.items() if some]
        if behind:
            return min(behind)
        return self.service[self.last] if self.last is not None else 0.0

    def owed(self, tenant: str) -> float:
        """The counter that counts: an idle tenant that comes back is lifted."""
        mine = self.service.get(tenant, 0.0)
        return mine if self.waiting.get(tenant) else max(mine, self.level())

    def wait(self, request: Request) -> None:
        tenant = request.tenant
        self.service[tenant] = self.owed(tenant)
        self.waiting.setdefault(tenant, []).append(request)

    def stop_waiting(self, request: Request) -> None:
        self.waiting[request.tenant].remove(request)
        if not self.waiting[request.tenant]:
            self.last = request.tenant

    def pay(self, request: Request, tokens: float) -> None:
        self.service[request.tenant] += tokens / WEIGHTS.get(request.tenant, 1.0)

    def admit(self, request: Request) -> None:
        self.stop_waiting(request)
        self.running.append(request)
        if request.id not in self.expected:  # a preempted one has paid
            expected = request.estimate.remaining_mean(0) * request.sequences  # type: ignore[union-attr]
            self.expected[request.id] = expected
            self.pay(request, max(0, request.prompt_tokens - request.cached_prompt_tokens) + 2 * expected)

    def end(self, request: Request, tokens: int) -> None:
        if request in self.running:
            self.running.remove(request)
        else:
            self.stop_waiting(request)
        expected = self.expected.pop(request.id, None)
        if expected is not None:
            self.pay(request, 2 * (tokens * request.sequences - expected))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tenants", [3, 150])
def test_the_accounts_are_those_of_the_description(tenants: int, seed: int) -> None:
    """With many tenants lengths come true: a refund lowers the level, and who was forgotten is lifted to that."""
    lots, books, true = Random(seed), Books(), tenants > 64
    policy = FairShare(tenant_weights=WEIGHTS)
    chances = [0.45, 0.8, 0.85, 0.93, 0.97]
    for number in range(700):
        now, dice = float(number), lots.random()
        waiting = [request for some in books.waiting.values() for request in some]
        if dice < chances[0] or not waiting:
            name = f"t{int(lots.random() ** 2 * tenants)}"
            request = Request(number, now, lots.randint(1, 900), tenant=name, sequences=lots.choice([1, 1, 3]))
            request.cached_prompt_tokens = lots.choice([0, 0, 100])
            request.estimate = PointEstimate(lots.randint(1, 300), "test")
            policy.lane(request)
            policy.observe(Arrived(request, now))
            books.wait(request)
        elif dice < chances[1]:
            heads = {}
            for request in sorted(waiting, key=lambda r: r.arrived_at):
                heads.setdefault(policy.lane(request), request)
            chosen = policy.choose(heads, now)
            least = min((books.owed(r.tenant), r.arrived_at) for r in heads.values())
            assert books.owed(heads[chosen].tenant) == pytest.approx(least[0])
            policy.observe(Admitted(heads[chosen], now))
            books.admit(heads[chosen])
        elif dice < chances[2] and books.running:
            request = books.running.pop(lots.randrange(len(books.running)))
            policy.observe(Preempted(request, now))
            books.wait(request)
        elif dice < chances[3] and books.running:
            request = lots.choice(books.running)
            policy.observe(FirstToken(request, now))
            tokens = int(request.estimate.remaining_mean(0)) if true else lots.randint(0, 500)  # type: ignore[union-attr]
            policy.observe(Completed(request, now, tokens))
            books.end(request, tokens)
        elif dice < chances[4]:
            leaving = [r for r in [*waiting, *books.running] if not (true and r.id in books.expected)]
            for request in leaving[:1]:
                request.produced_tokens = lots.randint(0, 50) if request.id in books.expected else 0
                policy.observe(Cancelled(request, now))
                books.end(request, request.produced_tokens)
        else:
            preempted = [request for request in waiting if request.id in books.expected]
            policy.observe(Refused(Request(-number, now, 5, tenant="t0"), now, "too long"))
            if preempted and not true:  # its last token was on its way
                policy.observe(Completed(preempted[0], now, 40))
                books.end(preempted[0], 40)
        for tenant in list(books.service) if number % 5 == 0 else []:
            mine = policy.service(tenant)
            if not books.waiting.get(tenant):
                mine = max(mine, books.level())
            assert mine == pytest.approx(books.owed(tenant))


def test_idle_tenants_are_forgotten_when_many_have_come() -> None:
    policy = FairShare()
    for number in range(1_000):
        request = Request(number, float(number), 10, tenant=f"t{number}")
        request.estimate = PointEstimate(5, "test")
        policy.observe(Arrived(request, float(number)))
        policy.observe(Admitted(request, float(number)))
        policy.observe(Completed(request, float(number), 5))
    assert len(policy._accounts._accounts) <= 2 * 64
