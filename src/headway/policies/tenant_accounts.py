"""Tenants' accounts: the service that each tenant was given, in weighted tokens over its weight, kept by events."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, Preempted
from headway.domain.request import RequestId, RequestView, expected_output_tokens

_SWEEP_ABOVE = 64  # tenants remembered before the first sweep for those that can be forgotten
_LONGEST_TOKENS = 2.0**24  # of an output: a larger charge would leave a float no room for the small ones
_IDLE_MAX = 20_000  # tenants that neither wait nor run but are ahead of the others, remembered after a sweep


class TenantAccount:
    """One tenant: what it was given, and how many of its requests wait and run."""

    __slots__ = ("running", "service", "waiting", "weight")

    def __init__(self, service: float, weight: float) -> None:
        self.service = service
        self.weight = weight
        self.waiting = 0
        self.running = 0


class TenantAccounts:
    """Charges prompt and expected output at admission, and corrects the charge at the end.

    Cached prompt tokens are free, so is recomputing after a preemption, and a cancelled request gets back what it did
    not receive.
    """

    def __init__(self, prompt_weight: float, output_weight: float, tenant_weights: Mapping[str, float]) -> None:
        """Weights are of a prompt token, of an output token and of tenants, 1 for those not named.

        Raises:
            ValueError: a weight is out of range; one sentence.
        """
        if not (0 <= prompt_weight < math.inf and 0 <= output_weight < math.inf and prompt_weight + output_weight > 0):
            raise ValueError(
                "prompt_weight and output_weight must be at least 0 and not both 0, "
                f"got {prompt_weight:g} and {output_weight:g}"
            )
        for tenant, weight in tenant_weights.items():
            if not 0 < weight < math.inf:
                raise ValueError(f"tenant_weights must be above 0, got {weight:g} for tenant {tenant!r}")
        self._prompt_weight = prompt_weight
        self._output_weight = output_weight
        self._tenant_weights = dict(tenant_weights)
        self._accounts: dict[str, TenantAccount] = {}
        self._backlogged: dict[str, TenantAccount] = {}  # tenants with waiting requests
        self._last_departed: TenantAccount | None = None  # the last tenant to have no waiting request any more
        self._expected: dict[RequestId, float] = {}  # output tokens charged, of every request admitted and not ended
        self._preempted: set[RequestId] = set()  # of those, the ones that wait again
        self._sweep_above = _SWEEP_ABOVE

    def service(self, tenant: str) -> float:
        """The tenant's counter, weighted tokens over its weight; counts from where it was last lifted to."""
        account = self._accounts.get(tenant)
        return self.level() if account is None else account.service

    def charge_of(self, request: RequestView) -> float:
        """What the tenant's counter would rise by if the request was admitted; 0 for one that has been before."""
        if request.id in self._preempted:
            return 0.0
        weight = self._tenant_weights.get(request.tenant, 1.0)
        return self._tokens(request, self._expected_tokens(request)) / weight

    def observe(self, event: Event) -> None:
        """Keep the accounts."""
        match event:
            case Arrived(request=request):
                self._wait(self._account(request.tenant), request.tenant)
            case Admitted(request=request):
                account = self._account(request.tenant)
                self._stop_waiting(account, request.tenant)
                account.running += 1
                if request.id in self._preempted:
                    self._preempted.remove(request.id)  # paid for already
                else:
                    self._charge(account, request)
            case Preempted(request=request):
                account = self._account(request.tenant)
                account.running -= 1
                self._preempted.add(request.id)
                self._wait(account, request.tenant)
            case Completed(request=request, output_tokens=output_tokens):
                account = self._account(request.tenant)
                if request.id in self._preempted:  # its last token was on its way when it was preempted
                    self._stop_waiting(account, request.tenant)
                else:
                    account.running -= 1
                self._settle(account, request, output_tokens)
            case Cancelled(request=request):
                self._cancel(request)
            case _:
                pass  # a refused request never waited, and first tokens are not what is counted

    def _account(self, tenant: str) -> TenantAccount:
        account = self._accounts.get(tenant)
        if account is None:
            if len(self._accounts) >= self._sweep_above:
                self._forget_idle()
            account = TenantAccount(0.0, self._tenant_weights.get(tenant, 1.0))
            self._accounts[tenant] = account
        return account

    def _wait(self, account: TenantAccount, tenant: str) -> None:
        """One more waits. A tenant that had no waiting request is lifted to the level of those that had."""
        if account.waiting == 0:
            account.service = max(account.service, self.level())
            self._backlogged[tenant] = account
        account.waiting += 1

    def _stop_waiting(self, account: TenantAccount, tenant: str) -> None:
        account.waiting -= 1
        if account.waiting == 0:
            del self._backlogged[tenant]
            self._last_departed = account

    def level(self) -> float:
        """Where a newcomer starts: the least served of those waiting, else the last that waited (VTC, Algorithm 2)."""
        if self._backlogged:
            return min([account.service for account in self._backlogged.values()])
        return 0.0 if self._last_departed is None else self._last_departed.service

    def _charge(self, account: TenantAccount, request: RequestView) -> None:
        expected = self._expected[request.id] = self._expected_tokens(request)
        account.service += self._tokens(request, expected) / account.weight

    def _expected_tokens(self, request: RequestView) -> float:
        return min(_LONGEST_TOKENS, expected_output_tokens(request)) * request.sequences

    def _tokens(self, request: RequestView, output_tokens: float) -> float:
        """Weighted: the prompt that is not cached and so much output."""
        prompt = max(0, request.prompt_tokens - request.cached_prompt_tokens)
        return self._prompt_weight * prompt + self._output_weight * output_tokens

    def _settle(self, account: TenantAccount, request: RequestView, output_tokens: int) -> None:
        """Replace the expected output by the true one."""
        self._preempted.discard(request.id)
        expected = self._expected.pop(request.id, None)
        if expected is not None:
            account.service += self._output_weight * (output_tokens * request.sequences - expected) / account.weight

    def _cancel(self, request: RequestView) -> None:
        account = self._account(request.tenant)
        if request.id in self._expected and request.id not in self._preempted:
            account.running -= 1
        else:
            self._stop_waiting(account, request.tenant)
        self._settle(account, request, request.produced_tokens)

    def _forget_idle(self) -> None:
        """Drop idle tenants whose counter a newcomer's would equal or pass: coming back, they would be lifted to it."""
        level = self.level()
        for tenant, account in list(self._accounts.items()):
            idle = account.waiting == 0 and account.running == 0
            if idle and account.service <= level and account is not self._last_departed:
                del self._accounts[tenant]
        self._forget_the_least_ahead()
        self._sweep_above = max(_SWEEP_ABOVE, 2 * len(self._accounts))

    def _forget_the_least_ahead(self) -> None:
        """Of idle tenants still ahead, keep at most `_IDLE_MAX`: tenants that would gain least by coming back go."""
        ahead = [
            (account.service, tenant)
            for tenant, account in self._accounts.items()
            if account.waiting == 0 and account.running == 0 and account is not self._last_departed
        ]
        for _, tenant in sorted(ahead)[: max(0, len(ahead) - _IDLE_MAX)]:
            del self._accounts[tenant]
