"""The replicas of a simulated fleet: what each of them is, and when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headway.domain.costs import ServiceCosts
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import SECONDS_PER_PS, StepTime


class Outage(NamedTuple):
    """A replica fails at `from_ps`, loses all that it holds, and serves again from `until_ps` on.

    From `notice_ps` before that on it drains: it is sent nothing new.
    """

    from_ps: int
    until_ps: int
    notice_ps: int = 0


@dataclass(frozen=True, slots=True)
class FleetMember:
    """One replica of a fleet.

    Attributes:
        id: its name, unique in the fleet.
        rules, step_time, costs: of its engine, as in `replica.Replica`.
        outages: one after the other; the last may end never (`FOREVER`).
        kv_bytes_per_token: KV memory of a token, which a migration copies.
    """

    id: str
    rules: EngineRules
    step_time: StepTime
    costs: ServiceCosts
    outages: tuple[Outage, ...] = ()
    kv_bytes_per_token: int = 0

    def __post_init__(self) -> None:
        check_outages(self.id, self.outages)


def check_outages(replica_id: str, outages: Sequence[Outage]) -> None:
    """Raise ValueError, in one sentence, unless a replica's outages begin at time 0 or later and follow each other."""
    before_ps = -1
    for outage in outages:
        if outage.from_ps < 0:
            raise ValueError(f"{replica_id} fails before time 0; write a time of 0 s or later")
        if outage.notice_ps and outage.from_ps - outage.notice_ps <= before_ps:
            raise ValueError(
                f"{replica_id} drains before time 0, or before it serves again, to fail at "
                f"{outage.from_ps * SECONDS_PER_PS:g} s; let it drain for less long"
            )
        if not before_ps < outage.from_ps < outage.until_ps:
            raise ValueError(
                f"{replica_id} fails at {outage.from_ps * SECONDS_PER_PS:g} s, before it serves again after the "
                "failure in front of that; list failures in order, and further apart"
            )
        before_ps = outage.until_ps
