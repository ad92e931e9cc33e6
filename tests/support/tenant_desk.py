"""A queue of tenants' requests, whose ordering is told what a scheduler would tell it."""

from __future__ import annotations

from itertools import count
from typing import Any

from headway.domain.estimate import PointEstimate
from headway.domain.event import Admitted, Arrived, Completed, Preempted
from headway.domain.request import Request
from headway.policies.tenant_ordering import TenantOrdering
from headway.scheduling.queue import WaitingQueue

_ids = count()


def request(tenant: str, prompt_tokens: int = 100, expected: int = 10, cached: int = 0, at: float = 0.0) -> Request:
    made = Request(next(_ids), at, prompt_tokens, tenant=tenant, cached_prompt_tokens=cached)
    made.estimate = PointEstimate(expected, "test")
    return made


class Desk:
    """A queue and its policy, told what a scheduler would tell."""

    def __init__(self, policy: TenantOrdering[Any]) -> None:
        self.policy = policy
        self.queue = WaitingQueue(policy)

    def arrive(self, *requests: Request) -> None:
        for r in requests:
            self.queue.add(r)
            self.policy.observe(Arrived(r, r.arrived_at))

    def admit(self, now: float = 0.0) -> Request:
        self.queue.reconsider()
        r = self.queue.pop(now)
        self.policy.observe(Admitted(r, now))
        return r

    def complete(self, r: Request, output_tokens: int, now: float = 0.0) -> None:
        r.produced_tokens = output_tokens
        self.policy.observe(Completed(r, now, output_tokens))

    def preempt(self, r: Request, now: float = 0.0) -> None:
        self.queue.resume(r)
        self.policy.observe(Preempted(r, now))
