"""Offline bound: to which replicas offline requests may be sent now. A gateway cannot take them back from an engine.

Law: an offline request goes to a replica that holds others only while no online request that the replica could serve
waits, and with it no more than `offline.use_max` of the replica's limit of requests and of its KV memory is in use.
Where the engine has not Headway's plug-in, it goes there only while the engine reports none waiting; and beside online
requests only while no prompt is computed there, and decode steps are measured at most (1 + `offline.share`) times as
long as with no offline request there, at about as many online ones.

What a step takes is measured by the tokens of streams (`StepClock`), over some time at each look. Where an offline
request makes steps too long, the replica's limit of them is halved; it rises by one a second while it holds and is
used. Headway's plug-in bounds both itself, in each step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from headway.gateway.queueing.outages import Demand
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import OfflineSettings

_LOOK_SECONDS = 0.5
_LEARNING = 0.2
_STEPS_MIN = 5  # between two looks, or nothing is learned of a step


@dataclass(slots=True)
class StepWatch:
    """One replica's steps with and without offline requests.

    Attributes:
        offline_max: offline requests that it may hold at once.
        seconds_alone: online requests there, about -> seconds of a step while nothing offline was there.
        seconds_beside: seconds of a step lately, with offline requests there; None before they were measured.
    """

    offline_max: float = 1.0
    seconds_alone: dict[int, float] = field(default_factory=dict)
    seconds_beside: float | None = None
    _looked_at: float = float("-inf")
    _steps: int = 0
    _kind: tuple[int, bool] = (0, False)

    def look(self, replica: UpstreamReplica, share: float, now: float) -> None:
        """Measure, if it is time to, and move the limit."""
        seconds = now - self._looked_at
        if seconds < _LOOK_SECONDS:
            return
        ledger = replica.ledger
        ledger.progress(now)
        running = ledger.running()
        offline = sum(request.is_offline for request in running)
        kind = (len(running) - offline).bit_length(), offline > 0
        steps, before = ledger.clock.steps - self._steps, self._kind
        self._looked_at, self._steps, self._kind = now, ledger.clock.steps, kind
        if kind == before and steps >= _STEPS_MIN:
            self._learn(seconds / steps, kind, offline, share)

    def _learn(self, step_seconds: float, kind: tuple[int, bool], offline: int, share: float) -> None:
        online, has_offline = kind
        if not has_offline:
            known = self.seconds_alone.get(online, step_seconds)
            self.seconds_alone[online] = known + _LEARNING * (step_seconds - known)
            self.seconds_beside = None
            self.offline_max = max(1.0, self.offline_max)
            return
        known = step_seconds if self.seconds_beside is None else self.seconds_beside
        beside = self.seconds_beside = known + _LEARNING * (step_seconds - known)
        alone = self.seconds_alone.get(online)
        if not online or alone is None or beside <= (1 + share) * alone:
            if offline + 1 > self.offline_max:
                self.offline_max += _LOOK_SECONDS
        else:
            self.offline_max = self.offline_max / 2 if self.offline_max >= 1 else 0.0
            self.seconds_beside = None  # what was measured is of more of them


class OfflineBound:
    """One per process."""

    def __init__(self) -> None:
        self._watches: WeakKeyDictionary[UpstreamReplica, StepWatch] = WeakKeyDictionary()
        self.held: dict[str, int] = {}
        """Reason -> how often no replica took an offline head."""

    def watch_of(self, replica: UpstreamReplica) -> StepWatch:
        """What is measured of a replica."""
        watch = self._watches.get(replica)
        if watch is None:
            watch = self._watches[replica] = StepWatch()
        return watch

    def look(self, replicas: Iterable[UpstreamReplica], settings: OfflineSettings, now: float) -> None:
        """Measure the steps of all replicas, some times a second at most."""
        for replica in replicas:
            self.watch_of(replica).look(replica, settings.share, now)

    def may_take(
        self,
        candidates: list[UpstreamReplica],
        queued: QueuedRequest,
        online_waiting: Mapping[Demand, int],
        settings: OfflineSettings,
        now: float,
    ) -> list[UpstreamReplica]:
        """Those of the candidates that this offline request may be sent to now."""
        self.look(candidates, settings, now)
        reasons = {replica: self._why_not(replica, queued, online_waiting, settings) for replica in candidates}
        taking = [replica for replica, why in reasons.items() if why is None]
        if not taking:
            why = next(filter(None, reasons.values()), "no-room")
            self.held[why] = self.held.get(why, 0) + 1
        return taking

    def _why_not(
        self,
        replica: UpstreamReplica,
        queued: QueuedRequest,
        online_waiting: Mapping[Demand, int],
        settings: OfflineSettings,
    ) -> str | None:
        """Why it may not take the request; None if it may."""
        ledger, report = replica.ledger, replica.state.report
        if any(replica is not failed and replica.serves(model, ends) for model, failed, ends in online_waiting):
            return "online-waits"
        if not ledger.requests:
            return None
        if ledger.requests + 1 > settings.use_max * ledger.requests_max:
            return "requests"
        most = ledger.kv_tokens_max
        if most is not None and ledger.kv_tokens + ledger.kv_need(queued) > settings.use_max * most:
            return "kv-memory"
        if replica.reads_hints:  # the engine bounds the rest itself, in each step
            return None
        if report.waiting:
            return "engine-queue"
        offline = sum(request.is_offline for request in ledger.running())
        if offline == ledger.requests:  # none online is slowed
            return None
        if ledger.prefill_tokens:
            return "prompt"
        return "step-time" if offline + 1 > self.watch_of(replica).offline_max else None
