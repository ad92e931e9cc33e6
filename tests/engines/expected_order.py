"""The expected order: which requests our own scheduler chooses at the instants at which vLLM admitted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.domain.costs import ServiceCosts
from headway.domain.request import Request
from headway.scheduling.bundle import bundle
from headway.scheduling.scheduler import Scheduler

COSTS = ServiceCosts(1e-4, 2e-2)


def expected_order(
    ordering: str,
    requests: Sequence[Request],
    admitted_at: Sequence[float],
    first_token: Mapping[str, float],
    ended: Mapping[str, float],
    produced: Mapping[str, int],
) -> list[str]:
    """Ids in the order of admission, where one runs at a time.

    Args:
        ordering: of the catalogue; all other policies are vLLM's own ways.
        requests: by arrival; a request may be chosen by any admission after its arrival.
        admitted_at: the time of each admission.
        first_token: id → when its first token came.
        ended: id → when its last token came.
        produced: id → its output tokens.
    """
    scheduler = Scheduler(bundle(ordering=ordering, costs=COSTS, seed=0))
    coming, order = list(requests), list[str]()
    before: Request | None = None
    for now in admitted_at:
        while coming and coming[0].arrived_at <= now:
            request = coming.pop(0)
            scheduler.arrive(request, request.arrived_at)
        if before is not None:
            id_ = str(before.id)
            before.produced_tokens = produced[id_]
            scheduler.first_token(before, first_token[id_])
            scheduler.complete(before, ended[id_])
        before = scheduler.admit(now)
        order.append(str(before.id))
    return order
