"""One replica behind the gateway: its health, its models, and whether it has room for one more request.

A replica starts unknown, is up once it answers a probe, and is ejected when it fails. An ejected replica is probed,
first soon, then ever more seldom, and is up again with the first answer.

What is judged are requests and probes; metrics that do not come make its figures stale. A refused connection and probes
that fail in a row are the replica's own doing and eject it. Failures of requests may be the doing of a request: they
eject within bounds, which leave replicas for the other requests.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from headway.domain.engine_hints import REQUEST_SESSION
from headway.domain.request import Request, uncached_prefill_tokens
from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit, FirstByteTime
from headway.gateway.replicas.in_flight import BLOCK_TOKENS, InFlight
from headway.gateway.replicas.inter_token_latency import InterTokenLatency
from headway.gateway.replicas.kv_event_subscription import KvEventSubscription
from headway.gateway.replicas.learned_costs import LearnedCosts
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.replicas.replica_state import Health, ReplicaState
from headway.gateway.settings import HealthSettings, ReplicaSettings
from headway.gateway.settings_file import replica_key
from headway.gateway.wire.upstream_pool import UpstreamPool

FIGURES = ("waiting", "running", "kv_share", "kv_tokens_max")  # of a `LoadReport`; each has an age of its own
CONFIGURED = "the configuration"
_UP = Health.UP  # asked for each request, and slow to reach through its class
log = logging.getLogger("headway.gateway")


class UpstreamReplica:
    """One replica."""

    def __init__(
        self,
        settings: ReplicaSettings,
        health: HealthSettings,
        clock: Callable[[], float],
        peers: Callable[[], Sequence[UpstreamReplica]] = tuple,
        via: bytes = b"1.1 headway",
    ) -> None:
        """`peers` gives all replicas of the gateway, which bound how many are ejected at once; `via`: see the pool."""
        self.settings = settings
        self.name = settings.name or urlsplit(settings.url).netloc
        self.position: int | None = None  # among all that are there
        self.source = CONFIGURED  # what names it
        self.state = ReplicaState()
        self.is_drained = False  # by an operator: it gets no new request, whatever its health, and ends those it has
        self.ledger = InFlight(self.name)
        self.kv_events: KvEventSubscription | None = None
        self.learned_costs = LearnedCosts()
        self.token_latency = InterTokenLatency()
        self.limit = ConcurrencyLimit(fixed=settings.max_requests)
        self.pool = UpstreamPool(
            settings.url,
            connect_seconds=health.connect_seconds,
            head_bytes=health.answer_head_bytes,
            clock=clock,
            via=via,
            tcp_idle_seconds=health.tcp_idle_seconds,
        )
        self.health = health
        self._session_prefix = REQUEST_SESSION + via.decode("latin-1").rpartition(" ")[2]
        self._clock = clock
        self._peers = peers
        key = replica_key(settings)
        self.authorization = f"Bearer {key}".encode() if key else None
        self.ledger.kv_tokens_max = settings.kv_tokens
        self.ledger.requests_max = self.limit.requests_max

    def __repr__(self) -> str:
        ledger = self.ledger
        return f"<replica {self.name}: {self.state.health}, {ledger.requests}/{ledger.requests_max} requests>"

    @property
    def shown_as(self) -> str:
        """What clients get to see: the configured name, else a number, but never an address."""
        return self.settings.name or f"replica-{self.position}"

    def session_id(self, number: int) -> str:
        """The session id of a request whose client gave none, by which its KV events are known."""
        return f"{self._session_prefix}-{number}"

    @property
    def is_up(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state.health is _UP and not self.is_drained

    @property
    def is_healthy(self) -> bool:
        """Whether it answers, drained or not."""
        return self.state.health is _UP

    def serves(self, model: str, endpoints: Collection[str] = ()) -> bool:
        """Whether it has the model, and is one of `endpoints` if there are any. One that lists no models has any."""
        has_it = not self.state.models or not model or model in self.state.models
        return has_it and (not endpoints or self.pool.endpoint in endpoints)

    @property
    def has_place(self) -> bool:
        """Whether its limit allows one more request, whatever its size."""
        return self.ledger.requests < self.ledger.requests_max or not self.ledger.requests

    def has_room(self, request: Request, *, for_output: bool = True) -> bool:
        """Whether one more fits: its limit of requests, prompts to compute, KV memory where known. If empty, always.

        `for_output`: whether memory has to suffice for half of all expected outputs too, as long as no admission policy
        weighs it. Without, the prompt has to fit beside what is held now, which is what engines ask for.
        """
        ledger = self.ledger
        if ledger.requests == 0:
            return True
        if ledger.requests >= ledger.requests_max:
            return False
        prefill = ledger.prefill_tokens
        if prefill and prefill + uncached_prefill_tokens(request) > self.settings.prefill_tokens:
            return False
        if ledger.kv_tokens_max is None:
            return True
        others = self.state.other_kv_tokens if self._is_fresh("kv_share") else 0
        if for_output:
            return ledger.kv_tokens + others + ledger.kv_need(request) <= ledger.kv_tokens_max
        prompt = -(-request.prompt_tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        return ledger.held_tokens() + others + prompt <= ledger.kv_tokens_max

    # What the relay and the probes report

    def first_byte(self, seconds: float, expected_seconds: float) -> None:
        """A first byte came after `seconds`; about `expected_seconds` were expected for a request of that size."""
        now = self._clock()
        self.made_progress()  # which is not yet a good answer: an engine that dies sends a first byte too
        if not self.limit.is_fixed:
            time = None if self._is_fresh("waiting") else FirstByteTime(seconds, seconds / expected_seconds)
            requests = self.ledger.requests
            self.limit.answered(requests, time, now, requests - self.ledger.answering)
        self._update_requests_max()

    def completed(self, *, is_generation: bool) -> None:
        """It answered a request whole: failures before and after it are not in a row.

        The expected time of an embedding or an image is not known. So only refusals and the replica's own queue show
        that there were too many of them; for generation `first_byte` shows more.
        """
        self._answered_well()
        if not is_generation:
            self.limit.answered(self.ledger.requests, None, self._clock())
            self._update_requests_max()

    def failed(self, why: str) -> None:
        """It did not answer a request, or not properly."""
        state = self.state
        state.failures += 1
        state.last_failure = why
        state.failure_share.note(failed=True)
        if state.health is not Health.UP:
            return
        if state.failures >= self.health.failures_to_eject:
            self._eject_within_bounds(why)
        elif self._fails_often():
            self._eject_within_bounds(f"{why}, and {self.health.failing_share:.0%} of its latest answers failed")

    def _fails_often(self) -> bool:
        """Whether many of its latest answers failed, and few of those of the other replicas of its models."""
        own = self.state.failure_share
        if not own.reaches(self.health.failing_share):
            return False
        peers = {one for serving in self._peers_by_model() for one in serving if one is not self}
        return own.stands_out(one.state.failure_share for one in peers)

    def unreachable(self, error: OSError) -> None:
        """No connection for a request could be made. Only a refused one proves that nothing listens."""
        why = f"it cannot be reached: {error or 'no answer in time'}"
        if isinstance(error, ConnectionRefusedError) and self.state.health is Health.UP:
            self.state.last_failure = why
            self._eject(why)
        else:
            self.failed(why)

    def made_progress(self) -> None:
        """Bytes of an answer came, or its client takes none."""
        self.state.makes_progress = True

    def look_for_stall(self, now: float, *, owes: bool) -> None:
        """Eject it if it has been silent in every way, about once a second. Metrics alone prove nothing.

        `owes`: some request there should have had a byte by now, or else its latest probe must have failed.
        """
        state, bound = self.state, self.health.stall_seconds
        if state.makes_progress or not self.ledger.requests:
            state.makes_progress, state.progress_at = False, now
        if state.health is not Health.UP or state.silent_since is None or not (owes or state.failed_probes):
            return
        if now - state.silent_since >= bound and now - state.progress_at >= bound:
            self._eject_within_bounds(f"for {bound:g} s it sent neither an answer nor its metrics")

    def refused(self) -> None:
        """It refused a request because it has too many."""
        self.state.refusals_total += 1
        self.made_progress()
        self.limit.congested(self.ledger.requests, self._clock())
        self._update_requests_max()

    def listed(self, models: Mapping[str, object] | None, adapters: Mapping[str, str]) -> None:
        """It listed its models, among them `adapters`, with their base models; None where that was no such list."""
        state, before = self.state, self.state.models
        state.lists_changed += adapters != state.adapter_parents or (models or {}).keys() != (before or {}).keys()
        state.models, state.adapter_parents = models, adapters
        self.ledger.adapters = None if models is None else frozenset(adapters)
        self.ledger.adapters_as_of = self._clock()

    def probed(self, alive: bool, why: str = "", *, refused: bool = False) -> None:
        """A probe was answered, or not; `refused`: its connection was."""
        state, now = self.state, self._clock()
        if state.health is Health.LEAVING:
            return
        if alive:
            state.failed_probes = 0
            state.probe_at = now + self.health.models_seconds
            if state.health is not Health.UP:
                self._is_up_again(now)
            return
        state.last_failure = why
        state.failures += 1
        state.failed_probes += 1
        state.probe_at = now + self.health.scrape_seconds
        enough = self.health.failures_to_eject
        if state.health is not Health.UP or refused or state.failed_probes >= enough:
            self._eject(why)
        elif state.failures >= enough:
            self._eject_within_bounds(why)

    def metrics_missed(self, since: float | None) -> None:
        """Its metrics did not come: a probe must tell whether it is alive.

        `since` is when they were asked for, if it came before and says nothing now; None if it breaks off, which is a
        sign of life.
        """
        state = self.state
        if state.silent_since is None or since is None:
            state.silent_since = since
        state.probe_at = min(state.probe_at, self._clock())

    def metrics_came(self) -> None:
        """Its metrics were answered, whatever they hold."""
        self.state.silent_since = None

    def reported(self, report: LoadReport) -> None:
        """Its metrics were read."""
        state = self.state
        state.report = report
        state.other_requests = max(0, (report.running or 0) + (report.waiting or 0) - self.ledger.requests)
        self._take_report(report)
        used = (report.kv_share or 0.0) * (self.ledger.kv_tokens_max or 0)
        ours = (
            self.ledger.held_tokens() + BLOCK_TOKENS * self.ledger.requests
        )  # which take a block ahead of their tokens
        state.other_kv_tokens = max(0, int(used) - ours)
        if report.steps is not None:
            self.ledger.engine_counted(report.steps)
        if report.preemptions is not None:
            before, state.preemptions = state.preemptions, report.preemptions
            if before is not None:  # a counter that falls began again with its engine
                state.new_preemptions += max(0, report.preemptions - before)

    def take_preemptions(self) -> int:
        """Preemptions that its engine has counted since the latest call."""
        taken, self.state.new_preemptions = self.state.new_preemptions, 0
        return taken

    def reported_in_header(self, report: LoadReport) -> None:
        """An answer carried a load header: fewer figures than the metrics, but newer. Figures it leaves out stay."""
        known = self.state.report
        waiting = known.waiting if report.waiting is None else report.waiting
        kv_share = known.kv_share if report.kv_share is None else report.kv_share
        self.state.report = replace(known, waiting=waiting, kv_share=kv_share)
        self._take_report(report)

    def _take_report(self, report: LoadReport) -> None:
        now = self._clock()
        self.state.reported_at |= {name: now for name in FIGURES if getattr(report, name) is not None}
        self.ledger.as_of = now
        if self.settings.kv_tokens is None and report.kv_tokens_max is not None:
            self.ledger.kv_tokens_max = report.kv_tokens_max
        # An engine admits requests at the end of a step: one or a few wait at any moment, which is no congestion.
        if report.waiting is not None and report.waiting > 1 + (self.state.report.running or 0) // 10:
            self.limit.congested(self.ledger.requests, now)
        self._update_requests_max()

    @property
    def waiting_requests(self) -> int | None:
        """Requests in its engine's own queue by the latest report; None if it does not tell, or that is old."""
        return self.state.report.waiting if self._is_fresh("waiting") else None

    @property
    def reads_hints(self) -> bool:
        """Whether it reads our hints in `vllm_xargs`."""
        wanted = self.settings.hints
        return wanted == "always" or (wanted == "auto" and self.state.report.reads_hints)

    def ages_seconds(self) -> dict[str, float]:
        """Seconds since it last reported each figure that it ever reported."""
        now = self._clock()
        return {name: now - at for name, at in self.state.reported_at.items()}

    def _is_fresh(self, figure: str) -> bool:
        return self._clock() - self.state.reported_at.get(figure, -math.inf) <= self.health.stale_seconds

    def _update_requests_max(self) -> None:
        """The limit, less the requests there that this gateway did not send, by the latest report."""
        reported = self.state.other_requests
        others = reported if reported and self._is_fresh("running") else 0
        self.ledger.requests_max = max(1, self.limit.requests_max - others)

    # Health

    def _answered_well(self) -> None:
        state = self.state
        state.makes_progress = True
        state.failure_share.note(failed=False)
        if state.failures or state.ejections:
            state.failures = state.failed_probes = 0
            if not state.failure_share.reaches(self.health.failing_share / 2):  # else its next ejection lasts longer
                state.ejections = 0
            state.is_spared = False

    def _is_up_again(self, now: float) -> None:
        state = self.state
        if state.health is not Health.UP:
            again = f" again after {now - state.changed_at:.1f} s" if state.health is Health.EJECTED else ""
            log.info("replica %s is up%s", self.name, again, extra={"fields": {"replica": self.name}})
        state.health = Health.UP
        state.changed_at = state.progress_at = now
        state.failures = 0
        state.is_failing = state.is_spared = False
        state.silent_since = None

    def _eject_within_bounds(self, why: str) -> None:
        """Eject it, or keep it because the bounds say so; then a probe tells more."""
        state = self.state
        if self._bounds_allow():
            self._eject(why, is_failing=True)
            return
        state.ejections_withheld += 1
        state.probe_at = min(state.probe_at, self._clock())
        if not state.is_spared:
            state.is_spared = True
            message = "replica %s failed (%s), but too few others are up to eject it"
            log.warning(message, self.name, why, extra={"fields": {"replica": self.name}})

    def _bounds_allow(self) -> bool:
        """Whether enough replicas stay up without it, for each of its models."""
        health = self.health
        for serving in self._peers_by_model():
            up = sum(one.is_up for one in serving)
            failing = sum(one.state.health is Health.EJECTED and one.state.is_failing for one in serving)
            most = max(1, int(health.ejected_share_max * len(serving)))
            if failing >= most or up - 1 < health.panic_share * len(serving):
                return False
        return True

    def _peers_by_model(self) -> list[list[UpstreamReplica]]:
        """The replicas that serve each of its models; one list if all replicas serve the same."""
        peers = [one for one in self._peers() if one is self or not one.is_drained] or [self]
        own = (self.state.models or {}).keys()
        if all((one.state.models or {}).keys() == own for one in peers):
            return [peers]
        return [[one for one in peers if one.serves(model)] for model in own or ("",)]

    def _eject(self, why: str, *, is_failing: bool = False) -> None:
        state, now = self.state, self._clock()
        before, state.health = state.health, Health.EJECTED
        wait = min(self.health.eject_seconds_max, self.health.eject_seconds * 2.0**state.ejections)
        state.ejections = min(state.ejections + 1, 30)
        state.probe_at = now + wait
        if before is Health.EJECTED:
            return
        state.changed_at = now
        state.ejections_total += 1
        state.is_failing = is_failing
        what = "was not reached" if before is Health.UNKNOWN else "is ejected"
        fields = {"replica": self.name, "probe_seconds": wait}
        log.warning("replica %s %s: %s", self.name, what, why, extra={"fields": fields})
        if not is_failing:
            self._recall_failing(now)

    def _recall_failing(self, now: float) -> None:
        """Probe at once what failures of requests ejected, if without it too few replicas are up."""
        for serving in self._peers_by_model():
            if sum(one.is_up for one in serving) >= self.health.panic_share * len(serving):
                continue
            for one in serving:
                if one.state.health is Health.EJECTED and one.state.is_failing:
                    one.state.probe_at = now
