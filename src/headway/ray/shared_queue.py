"""The one queue of a Ray Serve deployment: the gateway's dispatcher, fed by many routers instead of connections.

Laws: a request waits once, whatever its router does; a replica has no more requests than it takes; a router that falls
silent leaves nothing behind; what is kept is bounded by the requests inside and by the routers heard of lately.

It knows nothing of Ray: an actor (`queue_actor.py`) passes messages on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from headway.gateway.api_keys import ApiKeys
from headway.gateway.openai.client_terms import read_terms
from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.error_responses import Reason
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.request_body import read_body
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.dispatch_contracts import QueueHooks
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.hold_timer import HoldTimer
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.request_state import RequestStage
from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HINTS, ReplicaSettings, TenantSettings
from headway.gateway.signed_tokens import KeyFault
from headway.gateway.wire.messages import HttpRequest
from headway.ray.queue_messages import (
    Greeting,
    LostKind,
    QueueEntry,
    RefusedRequest,
    Rejection,
    RequestFacts,
    RouterNews,
    RouteVerdict,
    ServeReplica,
)
from headway.ray.queue_settings import RayQueueSettings
from headway.ray.ticket_relay import BROKE, TicketRelay

SWEEP_SECONDS = 0.25
_ROUNDS_A_SECOND = 4
_A_TURN = 50  # requests looked at before others have the event loop
_News = TypeVar("_News", QueueEntry, Rejection)
_PRIORITY_BOUND = 1_000_000  # of what an application says of its own requests
log = logging.getLogger("headway.ray")


class _RouterSide:
    """One router: its requests inside, and the verdicts that wait for it."""

    def __init__(self, now: float) -> None:
        self.heard_at = now
        self.tickets: dict[int, TicketRelay] = {}
        self.elsewhere: dict[int, str] = {}  # requests at replicas that it did not send through this queue
        self.replicas: dict[str, ServeReplica] = {}
        self.is_heard = False  # now: what there is to tell goes with the answer, and wakes no other call
        self._verdicts: list[RouteVerdict] = []
        self._is_due = asyncio.Event()

    def tell(self, verdict: RouteVerdict) -> None:
        """A verdict for it."""
        self._verdicts.append(verdict)
        if not self.is_heard:
            self._is_due.set()

    def take_verdicts(self) -> list[RouteVerdict]:
        """What it has not heard yet."""
        taken, self._verdicts = self._verdicts, []
        self._is_due.clear()
        return taken

    async def some_verdict(self, seconds: float) -> None:
        """Wait until there is one, or until the time is over."""
        try:
            async with asyncio.timeout(seconds):
                await self._is_due.wait()
        except TimeoutError:
            return


class SharedQueue:
    """One per actor, in its event loop. `clock` gives seconds."""

    def __init__(self, settings: RayQueueSettings, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises ValueError, one sentence, if a key of a tenant cannot be read."""
        self._settings = settings
        self._clock = clock
        gateway = settings.gateway
        self._keys = ApiKeys(gateway.tenant)
        self._prompt_count = PromptCount({}, TokenRatio(), gateway.media_tokens)
        self._intake = Intake(self._prompt_count, clock, "ray")
        self._hold_timer = HoldTimer(clock, lambda: self.dispatcher.pump())  # noqa: PLW0108 - made below
        hooks = QueueHooks(
            held=self._hold_timer.held,
            go_on_soon=lambda act: asyncio.get_running_loop().call_soon(act),
            cached_tokens=self._intake.cached_tokens,
            later=lambda seconds, act: asyncio.get_running_loop().call_later(seconds, act),
        )
        self.dispatcher = Dispatcher(gateway, clock, [self._intake], hooks=hooks)
        self._routers: dict[str, _RouterSide] = {}
        self._without_routers_since = clock()
        self._lost: set[str] = set()  # replicas that died, and that some router still lists
        self._replicas: dict[str, UpstreamReplica] = {}
        self._elsewhere: Counter[str] = Counter()  # replica -> requests there that this queue did not send

    # From the routers

    def greet(self, greeting: Greeting) -> None:
        """A router begins, or begins again after this queue was lost or had forgotten it."""
        self._forget(greeting.router)
        side = self._routers[greeting.router] = _RouterSide(self._clock())
        for number, replica in greeting.running:
            side.elsewhere[number] = replica
            self._elsewhere[replica] += 1
        self._list_replicas(side, greeting.replicas)

    def take(self, news: RouterNews) -> list[RouteVerdict] | None:
        """What a router tells; the verdicts that it has not heard yet. None if it has to greet first."""
        side = self._routers.get(news.router)
        if side is None:
            return None
        side.heard_at, side.is_heard = self._clock(), True
        try:
            self._heed(side, news)
        finally:
            side.is_heard = False
        return side.take_verdicts()

    def _heed(self, side: _RouterSide, news: RouterNews) -> None:
        for name, kind in news.lost:
            self._lose(name, kind)
        if news.replicas is not None:
            self._list_replicas(side, news.replicas)
        for number, outcome in news.ended:
            self._end(side, number, outcome)
        for rejection in news.rejected:
            self._guarded(side, rejection.number, self._reject, rejection)
        for entry in news.entered:
            self._guarded(side, entry.number, self._enter, entry)

    def _guarded(self, side: _RouterSide, number: int, act: Callable[[_RouterSide, _News], None], news: _News) -> None:
        """A fault in our own code ends one request, and none of the others that its router tells of."""
        try:
            act(side, news)
        except Exception as error:
            relay = side.tickets.pop(number, None)
            if relay is None:
                self.dispatcher.errors.contained("ray", error)
                refused = RefusedRequest(500, BROKE, str(Reason.INTERNAL_ERROR), None)
                side.tell(RouteVerdict(number, refusal=refused))
            else:
                self.dispatcher.contain(relay, "ray", error)

    async def wait(self, router: str, seconds: float) -> list[RouteVerdict] | None:
        """Verdicts for a router as soon as there are any, at the latest after so many seconds; None as in `take`."""
        side = self._routers.get(router)
        if side is None:
            return None
        side.heard_at = self._clock()
        await side.some_verdict(seconds)
        if self._routers.get(router) is not side:
            return None
        side.heard_at = self._clock()
        return side.take_verdicts()

    def leave(self, router: str) -> None:
        """A router ends, with its requests."""
        self._forget(router)

    def figures(self) -> dict[str, object]:
        """Counts of requests, routers and replicas, for people and tests."""
        dispatcher, counts = self.dispatcher, self.dispatcher.counts
        return {
            "routers": len(self._routers),
            "waiting": sum(dispatcher.served_queues.waiting.values()),
            "inside": counts.inside,
            "arrived": counts.arrived,
            "ended": {str(outcome): number for outcome, number in counts.ended.items()},
            "reasons": {str(reason): number for reason, number in counts.reasons.items()},
            "replicas": {
                name: {
                    "requests": one.ledger.requests,
                    "requests_max": one.ledger.requests_max,
                    "elsewhere": self._elsewhere[name],
                    "is_up": one.is_up,
                }
                for name, one in self._replicas.items()
            },
            "errors": dict(dispatcher.errors.by_place),
        }

    # One request

    def _enter(self, side: _RouterSide, entry: QueueEntry) -> None:
        number, facts = entry
        http = HttpRequest(b"POST", facts.path.encode("ascii", "replace"), list(facts.headers), facts.head)
        tenant = self._tenant_of(http, facts)
        if isinstance(tenant, KeyFault):
            refused = RefusedRequest(tenant.status, tenant.message, str(Reason.UNAUTHORISED), tenant.retry_seconds)
            side.tell(RouteVerdict(number, refusal=refused))
            return
        endpoint = endpoint_of(facts.path)
        body = read_body(facts.head, endpoint)
        try:
            terms = read_terms(http, body)
        except ValueError as error:
            side.tell(RouteVerdict(number, refusal=RefusedRequest(400, str(error), str(Reason.MALFORMED), None)))
            return
        model = "" if body is None else body.model
        request = self._intake.take(
            http, endpoint, body, facts.prompt, model, model, tenant, terms, self._settings.gateway
        )
        if facts.adapter:
            request.queued.adapter = facts.adapter
        relay = TicketRelay(request, number, self.dispatcher, side.tell)
        side.tickets[number] = relay
        if self.dispatcher.announce(relay):
            self.dispatcher.arrive(relay)
        if request.stage is RequestStage.ENDED:
            side.tickets.pop(number, None)

    def _tenant_of(self, http: HttpRequest, facts: RequestFacts) -> TenantSettings | KeyFault:
        if not facts.is_trusted:
            return self._keys.holder_of(http)
        known = next((one for one in self._settings.gateway.tenant if one.name == facts.tenant), None)
        tenant = known or TenantSettings(name=facts.tenant)
        return replace(
            tenant,
            may=HINTS,
            priority_min=-_PRIORITY_BOUND,
            priority_max=_PRIORITY_BOUND,
            deadline_seconds_min=1e-3,
        )

    def _end(self, side: _RouterSide, number: int, outcome: Outcome) -> None:
        replica = side.elsewhere.pop(number, None)
        if replica is not None:
            self._ended_elsewhere(replica)
        relay = side.tickets.pop(number, None)
        if relay is not None:  # else it was refused, or its router had been forgotten
            relay.ended(outcome)

    def _reject(self, side: _RouterSide, rejection: Rejection) -> None:
        number, ongoing_requests, facts = rejection
        relay = side.tickets.get(number)
        if relay is None:  # it was sent before this queue was there
            self._end(side, number, Outcome.FAILED)
            self._enter(side, QueueEntry(number, facts))
            return
        replica = relay.request.queued.replica
        if replica is not None and ongoing_requests is not None:
            replica.reported(LoadReport(running=ongoing_requests))
        relay.rejected()

    # Replicas

    def _list_replicas(self, side: _RouterSide, replicas: Sequence[ServeReplica]) -> None:
        side.replicas = {one.name: one for one in replicas}
        self._look_at_replicas()

    def _lose(self, name: str, kind: LostKind) -> None:
        replica = self._replicas.get(name)
        if replica is None:
            return
        if kind is LostKind.DIED:
            self._lost.add(name)
            self._look_at_replicas()
        else:
            replica.probed(False, "Ray could not reach it", refused=True)

    def _look_at_replicas(self) -> None:
        """Those that some router lists, and none saw die. All hear of a change within milliseconds of each other."""
        listed: dict[str, ServeReplica] = {}
        for side in self._routers.values():
            listed |= side.replicas
        self._lost &= listed.keys()
        wanted = {name: one for name, one in listed.items() if name not in self._lost}
        is_changed = wanted.keys() != self._replicas.keys()
        for name in self._replicas.keys() - wanted.keys():
            self._replicas.pop(name).state.health = Health.LEAVING
            self._elsewhere.pop(name, None)
        for name in sorted(wanted.keys() - self._replicas.keys()):
            self._replicas[name] = self._replica(wanted[name])
        for name, one in wanted.items():
            self._set_room(name, one.requests_max)
            self._replicas[name].ledger.adapters = frozenset(one.adapters)
            self._replicas[name].ledger.adapters_as_of = self._clock()
        if is_changed:
            for position, replica in enumerate(self._replicas.values()):
                replica.position = position
            self.dispatcher.replace(self.dispatcher.settings, self._replicas.values(), self._clock())
        else:
            self.dispatcher.pump()

    def _replica(self, facts: ServeReplica) -> UpstreamReplica:
        own = self._settings.ray
        settings = ReplicaSettings(
            url="http://replica.ray.invalid",  # Ray carries the bytes
            name=facts.name,
            max_requests=facts.requests_max,
            prefill_tokens=own.prefill_tokens,
            kv_tokens=own.kv_tokens,
            metrics=False,
        )
        peers = lambda: list(self._replicas.values())  # noqa: E731
        replica = UpstreamReplica(settings, self._settings.gateway.health, self._clock, peers)
        replica.probed(True)
        return replica

    def _set_room(self, name: str, requests_max: int) -> None:
        """What a replica takes, less the requests there that this queue did not send."""
        replica, room = self._replicas[name], max(1, requests_max - self._elsewhere[name])
        if replica.limit.requests_max != room:
            replica.limit = ConcurrencyLimit(fixed=room)
            replica.ledger.requests_max = room

    def _ended_elsewhere(self, name: str) -> None:
        self._elsewhere[name] -= 1
        if self._elsewhere[name] <= 0:
            del self._elsewhere[name]
        replica = self._replicas.get(name)
        if replica is not None:
            listed = [side.replicas[name].requests_max for side in self._routers.values() if name in side.replicas]
            if listed:  # else its only router is about to be forgotten, and it with that
                self._set_room(name, max(listed))
                self.dispatcher.pump()

    # As time passes

    async def keep_sweeping(self) -> None:
        """Refuse what waited too long, forget silent routers; until it is cancelled."""
        rounds = 0
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            rounds += 1
            now = self._clock()
            try:
                await self._in_turns(self.dispatcher.time_limits.end_overtime(now))
                if rounds % _ROUNDS_A_SECOND == 0:
                    await self.sweep(now)
            except Exception as error:  # a fault in one round must not end the checks of all deadlines
                self.dispatcher.errors.contained("sweep", error)

    async def sweep(self, now: float) -> None:
        """One whole round; once a second."""
        for name, side in list(self._routers.items()):
            if now - side.heard_at >= self._settings.ray.router_seconds:
                log.warning(
                    "router %s is silent for %.0f s; its %d requests are dropped",
                    name,
                    now - side.heard_at,
                    len(side.tickets),
                )
                self._forget(name)
        for replica in self._replicas.values():
            if replica.state.health is Health.EJECTED and now >= replica.state.probe_at:
                replica.probed(True)  # nothing here probes: the next request does, and Ray removes what is dead
        await self._in_turns(self.dispatcher.sweep_in_steps(now))
        for side in self._routers.values():
            for number in [number for number, one in side.tickets.items() if one.request.stage is RequestStage.ENDED]:
                del side.tickets[number]

    async def _in_turns(self, steps: Iterable[None]) -> None:
        for number, _ in enumerate(steps, 1):
            if not number % _A_TURN:
                await asyncio.sleep(0)

    @property
    def unused_seconds(self) -> float:
        """For how long it has had no router."""
        return 0.0 if self._routers else self._clock() - self._without_routers_since

    def _forget(self, router: str) -> None:
        side = self._routers.pop(router, None)
        if side is None:
            return
        for number in [*side.tickets, *side.elsewhere]:
            self._end(side, number, Outcome.CANCELLED)
        self._without_routers_since = self._clock()
        self._look_at_replicas()
