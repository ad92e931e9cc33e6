"""One engine behind the gateway: whether it lives, what it has, and whether it has room for one more.

A replica starts unknown, is up once it answers a probe, and is ejected when it fails; an ejected one is probed, first
soon, then ever more seldom, and comes back with the first answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from urllib.parse import urlsplit

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request, uncached_prefill_tokens
from headway.gateway.replicas.concurrency_limit import ConcurrencyLimit
from headway.gateway.replicas.in_flight import InFlight
from headway.gateway.replicas.load_report import LoadReport
from headway.gateway.settings import HealthSettings, ReplicaSettings, replica_key
from headway.gateway.wire.upstream_pool import UpstreamPool

FIGURES = ("waiting", "running", "kv_share", "kv_tokens_max")
"""Of a `LoadReport`, each with an age of its own."""
_BLOCK_TOKENS = 16
_UNKNOWN_BLOCKS = 1 << 40


class Health(StrEnum):
    """Whether requests may be sent to it."""

    UNKNOWN = "unknown"
    UP = "up"
    EJECTED = "ejected"
    LEAVING = "leaving"


@dataclass(slots=True)
class ReplicaState:
    """What changes about it. Times are seconds on the shell's clock."""

    health: Health = Health.UNKNOWN
    failures: int = 0  # in a row
    ejections: int = 0  # in a row
    probe_at: float = -math.inf
    models: dict[str, dict[str, object]] | None = None  # its /v1/models by id; None until it answered
    report: LoadReport = field(default_factory=LoadReport)
    said_at: dict[str, float] = field(default_factory=dict)  # figure of the report -> when it was last said
    foreign: int = 0  # requests there that are not ours, by its latest metrics
    foreign_kv_tokens: int = 0  # KV memory that is not ours, likewise
    last_failure: str = ""


class UpstreamReplica:
    """One engine."""

    def __init__(self, settings: ReplicaSettings, health: HealthSettings, clock: Callable[[], float]) -> None:
        self.settings = settings
        self.name = settings.name or urlsplit(settings.url).netloc
        self.state = ReplicaState()
        self.ledger = InFlight(self.name)
        self.limit = ConcurrencyLimit(fixed=settings.max_requests)
        self.pool = UpstreamPool(settings.url, connect_seconds=health.connect_seconds, clock=clock)
        self.health = health
        self._clock = clock
        key = replica_key(settings)
        self.authorization = f"Bearer {key}".encode() if key else None
        self.ledger.kv_tokens_max = settings.kv_tokens
        self.ledger.requests_max = self.limit.requests_max

    @property
    def is_up(self) -> bool:
        """Whether requests may be sent to it."""
        return self.state.health is Health.UP

    def serves(self, model: str) -> bool:
        """Whether it has the model; of one that lists none, anything is believed."""
        return not self.state.models or not model or model in self.state.models

    def has_room(self, request: Request) -> bool:
        """Whether one more may be sent: seats, prompts to compute, KV memory where known. Alone, anybody may."""
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
        foreign = self.state.foreign_kv_tokens if self._is_fresh("kv_share") else 0
        return ledger.kv_tokens + foreign + ledger.kv_need(request) <= ledger.kv_tokens_max

    def memory(self) -> MemoryView:
        """Its KV memory by our book, for admission policies."""
        most = self.ledger.kv_tokens_max
        if most is None:
            return MemoryView(_UNKNOWN_BLOCKS, _UNKNOWN_BLOCKS, _BLOCK_TOKENS)
        return MemoryView(max(0, most - self._held_tokens()) // _BLOCK_TOKENS, most // _BLOCK_TOKENS, _BLOCK_TOKENS)

    # News

    def answered(self, seconds: float, expected_seconds: float) -> None:
        """A first byte came after `seconds`; a request of its size was expected to take about `expected_seconds`."""
        self.state.failures = self.state.ejections = 0
        now = self._clock()
        normalised = None if self._is_fresh("waiting") else seconds / expected_seconds
        self.limit.answered(self.ledger.requests, normalised, now)
        self._seats()

    def worked(self, *, is_generation: bool) -> None:
        """It answered a request whole: failures before it and after it are not in a row.

        How long an embedding or an image takes is not known to us, so that of those only its own queue and its refusals
        tell that there were too many; of generation `answered` hears more.
        """
        self.state.failures = 0
        if not is_generation:
            self.limit.answered(self.ledger.requests, None, self._clock())
            self._seats()

    def failed(self, why: str, *, at_once: bool = False) -> None:
        """It did not answer a request, or not properly; `at_once` if there can be no doubt (connection refused)."""
        state = self.state
        state.failures += 1
        state.last_failure = why
        if state.health is Health.UP and (at_once or state.failures >= self.health.failures_to_eject):
            self._eject()

    def refused(self) -> None:
        """It said that it has too much to do."""
        self.limit.congested(self.ledger.requests, self._clock())
        self._seats()

    def probed(self, alive: bool, why: str = "") -> None:
        """The answer to a probe."""
        state = self.state
        if state.health is Health.LEAVING:
            return
        if alive:
            if state.health is not Health.UP:
                state.health = Health.UP
                state.failures = 0
        elif state.health is Health.UP:
            self.failed(why)
        else:
            state.last_failure = why
            self._eject()

    def reported(self, report: LoadReport) -> None:
        """Its metrics were read."""
        state = self.state
        state.report = report
        state.foreign = max(0, (report.running or 0) + (report.waiting or 0) - self.ledger.requests)
        self._heard(report)
        used = (report.kv_share or 0.0) * (self.ledger.kv_tokens_max or 0)
        state.foreign_kv_tokens = max(0, int(used) - self._held_tokens())

    def spoke(self, report: LoadReport) -> None:
        """A response carried a load header: fewer figures than its metrics, and newer; what it leaves out stays."""
        known = self.state.report
        waiting = known.waiting if report.waiting is None else report.waiting
        kv_share = known.kv_share if report.kv_share is None else report.kv_share
        self.state.report = replace(known, waiting=waiting, kv_share=kv_share)
        self._heard(report)

    def _heard(self, news: LoadReport) -> None:
        now = self._clock()
        self.state.said_at |= {name: now for name in FIGURES if getattr(news, name) is not None}
        self.ledger.as_of = now
        if self.settings.kv_tokens is None and news.kv_tokens_max is not None:
            self.ledger.kv_tokens_max = news.kv_tokens_max
        # One or a few wait at any moment only because the engine takes newcomers at the end of a step.
        if news.waiting is not None and news.waiting > 1 + (self.state.report.running or 0) // 10:
            self.limit.congested(self.ledger.requests, now)
        self._seats()

    @property
    def reads_hints(self) -> bool:
        """Whether our hints in `vllm_xargs` are known to be heard there."""
        wanted = self.settings.hints
        return wanted == "always" or (wanted == "auto" and self.state.report.reads_hints)

    def ages_seconds(self) -> dict[str, float]:
        """How long ago it said each figure that it ever said."""
        now = self._clock()
        return {name: now - at for name, at in self.state.said_at.items()}

    def _held_tokens(self) -> int:
        return sum([request.prompt_tokens + request.produced_tokens for request in self.ledger.running()])

    def _is_fresh(self, figure: str) -> bool:
        return self._clock() - self.state.said_at.get(figure, -math.inf) <= self.health.stale_seconds

    def _seats(self) -> None:
        """Seats that are ours: the limit less what others than we have there, by its latest report."""
        foreign = self.state.foreign if self._is_fresh("running") else 0
        self.ledger.requests_max = max(1, self.limit.requests_max - foreign)

    def _eject(self) -> None:
        state = self.state
        state.health = Health.EJECTED
        wait = min(self.health.eject_seconds_max, self.health.eject_seconds * 2.0**state.ejections)
        state.ejections = min(state.ejections + 1, 30)
        state.probe_at = self._clock() + wait
