"""The orderings that a comparison shows where none is named."""

from __future__ import annotations

from headway.bench.experiment.fleets import Fleet
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace

DEFAULT_ORDERINGS = (
    "fcfs",
    "shortest-prompt-first",
    "shortest-job-first",
    "shortest-job-first-aging",
    "highest-response-ratio",
    "smallest-volume-first",
    "priced-work",
    "random",
)
FLEET_ORDERINGS = ("fcfs", "highest-response-ratio")
WITH_TENANTS = ("fair-share",)  # with one tenant it is fcfs
WITH_SHARED_PREFIXES = ("shortest-uncached-prefill-first", "longest-prefix-match")  # without these, orders above


def default_orderings(trace: Trace, server: Replica, fleet: Fleet | None = None) -> list[str]:
    """The orderings worth comparing on this traffic; of a fleet two, since each is run under every routing policy."""
    if fleet is not None:
        return list(FLEET_ORDERINGS)
    wanted = list(DEFAULT_ORDERINGS)
    if len(trace.tenants) > 1:
        wanted += WITH_TENANTS
    if server.rules.prefix_caching and trace.prefix_ids is not None:
        wanted += WITH_SHARED_PREFIXES
    return wanted
