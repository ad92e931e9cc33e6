"""The gateway: builds its parts, listens, probes replicas, takes new settings while it runs, drains and stops."""

from __future__ import annotations

import asyncio
import logging
import secrets
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from headway.config.address import host_and_port
from headway.gateway.admin_routes import AdminRoutes
from headway.gateway.administration import Administration
from headway.gateway.api_keys import AdminKeys, ApiKeys
from headway.gateway.api_routes import ApiRoutes
from headway.gateway.batch_api.batch_setup import BatchApi
from headway.gateway.certificate import Certificate
from headway.gateway.discovery.replica_register import ReplicaRegister
from headway.gateway.gateway_twin import GatewayTwin
from headway.gateway.leadership.leadership import Leadership
from headway.gateway.learned.learned_state import LearnedState
from headway.gateway.learned.queue_tuning import check_tuning
from headway.gateway.observing.gateway_metrics import GatewayMetrics
from headway.gateway.observing.hour_series import HourSeries
from headway.gateway.observing.loop_watch import LoopWatch
from headway.gateway.observing.process_metrics import build_metrics, process_metrics
from headway.gateway.observing.refusal_log import RefusalLog
from headway.gateway.observing.replica_metrics import source_metrics
from headway.gateway.observing.request_history import RequestHistory
from headway.gateway.observing.trace_recorder import TraceRecorder
from headway.gateway.observing.tracing import Tracing
from headway.gateway.observing.wanted_replicas import WantedReplicas
from headway.gateway.openai.prompt_blocks import CacheShape
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.queueing.dispatch_contracts import QueueHooks, RequestObserver
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.engine_queues import EngineQueues
from headway.gateway.queueing.hold_timer import HoldTimer
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.known_caches import cached_somewhere
from headway.gateway.queueing.request_state import QueuedRequest
from headway.gateway.replicas.model_lists import ModelLists
from headway.gateway.replicas.replica_membership import ReplicaMembership
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.routes import PublicRoutes
from headway.gateway.settings import ReplicaSettings, Settings
from headway.gateway.signed_tokens import SignedTokens, signed_tokens
from headway.gateway.trusted_sources import TrustedProxies
from headway.gateway.wire.client_connection import ClientConnection, RequestHandler
from headway.gateway.wire.limits import WireLimits, within_descriptors
from headway.gateway.wire.read_pacing import ReadPacer
from headway.gateway.wire.shared_limits import ConnectionPlace, SharedLimits
from headway.gateway.wire.tls_listener import BACKLOG, TlsListener

SWEEP_SECONDS = 0.25
_ROUNDS_A_SECOND = 4
_CLIENTS_A_TURN = 2_000  # looked at; each takes about a microsecond
_REQUESTS_A_TURN = 50  # looked at, of which each may be refused: about 60 us
_CLIENTS_SHARE, _ADMIN_SHARE = 0.75, 0.05  # of the descriptors; the rest connects to replicas
log = logging.getLogger("headway.gateway")


class Gateway:
    """One gateway on a running event loop: `start`, then `drain` (or `stop` at once)."""

    def __init__(
        self,
        settings: Settings,
        observers: Sequence[RequestObserver] = (),
        check_found: Callable[[ReplicaSettings], None] = lambda replica: None,
    ) -> None:
        """A gateway; `check_found` raises ValueError, one sentence, for a found replica that cannot be used here.

        Raises ValueError, one sentence, if the settings cannot be carried out or the recording cannot be opened.
        """
        self.settings = settings
        self._clock = time.monotonic
        self._tenants = ApiKeys(settings.tenant, signed_tokens(settings.jwt))
        self._certificate = Certificate(settings)
        self._metrics = GatewayMetrics(settings.metrics_series_max)
        wanted = WantedReplicas(lambda: self.settings, lambda: self.dispatcher.replicas, self._clock)
        self.loop_watch = LoopWatch(self._clock)
        self._recorder = TraceRecorder(Path(settings.record), time.monotonic()) if settings.record is not None else None
        self._tracing = Tracing(settings.tracing, self._clock) if settings.tracing.endpoint is not None else None
        check_tuning(settings)
        ratio = TokenRatio()
        self.twin = GatewayTwin(settings, lambda: self.dispatcher.replicas, _log_look)
        self._learned = LearnedState(settings, ratio, log.warning, self._budgets_in_steps, self.twin)
        self._prompt_count = PromptCount(settings.tokenizers, ratio, settings.media_tokens, self._cache_shape)
        self._saved_at = time.monotonic()
        self.cut_off = 0  # requests that were inside when it stopped
        start_trace = self._tracing.start if self._tracing is not None else None
        name = f"hw-{secrets.token_hex(4)}"
        self._via = f"1.1 {name}".encode()
        intake = Intake(self._prompt_count, self._clock, name, start_trace, self._cached_somewhere)
        history, self._refusal_log = RequestHistory(), RefusalLog()
        self._batches = BatchApi(settings.batches) if settings.batches.folder is not None else None
        recording = [one for one in (self._recorder, self._tracing, self._batches) if one is not None]
        observing: list[RequestObserver] = [self._metrics, wanted, *observers, *recording]
        self._hour = HourSeries(self._clock)
        observing += [intake, history, self._refusal_log, self.twin, self._hour]
        self._model_lists = ModelLists(lambda: self.dispatcher.replicas, self._clock)
        self._hold_timer = HoldTimer(self._clock, lambda: self.dispatcher.pump())  # noqa: PLW0108 - made below
        learned, held, ask = self._learned, self._hold_timer.held, self._model_lists.ask_again
        self._leadership = Leadership(settings.lease)
        hooks = QueueHooks(
            *(learned.prepare, learned.forget, held, _at_next_turn, intake.cached_tokens, _later),
            self._leadership.may_serve,
        )
        self.dispatcher = Dispatcher(self.twin.in_force(settings), self._clock, observing, ask, hooks)
        self._membership = ReplicaMembership(self._replica, EngineQueues(self.dispatcher).look, self._clock)
        self._register = ReplicaRegister(self._replicas_changed, check_found)
        self._learned.restore_budgets(self.dispatcher.budgets.restore)
        self.api = ApiRoutes(
            self.dispatcher,
            self._tenants,
            self._metrics,
            intake,
            self._prompt_count,
            [wanted.arrived, self.twin.arrived, *([] if self._recorder is None else [self._recorder.arrived])],
            self._refusal_log,
            self._via,
        )
        administration = Administration(self.dispatcher, AdminKeys(settings), self._register)
        has_admin = settings.admin_listen is not None
        self.site = PublicRoutes(
            self.api, administration, history, self._learned, self.twin, hour=self._hour, has_admin=has_admin
        )
        self._held: dict[str, SharedLimits] = {}  # listener -> what its clients hold
        self._metrics.watch(self.dispatcher, self.loop_watch, self._held)
        gauges = [lambda: source_metrics(self._register.sources), wanted.metrics, self._leadership.metrics]
        gauges += [*self._join_batches(), self.twin.metrics, process_metrics, build_metrics]
        self._metrics.further, self.site.stands_by = gauges, self._leadership.stands_by
        self._clients: set[ClientConnection] = set()
        self._servers: list[asyncio.Server | TlsListener] = []
        self._asking_for_keys: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None

    def _join_batches(self) -> list[Callable[[], Iterator[str]]]:
        """Make the Batch API part of the gateway where there is one; returns its metrics."""
        if self._batches is None:
            return []
        self._batches.connect(self.dispatcher, self.api.submit, self.api.refused)
        self.api.batches = self._batches.routes
        return [self._batches.metrics]

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """(host, port) of the public address, then of the admin's if there is one."""
        return [server.sockets[0].getsockname()[:2] for server in self._servers]

    @property
    def urls(self) -> list[str]:
        """The same as they are written for a browser."""
        hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.addresses]
        schemes = ["http" if self.settings.tls_certificate is None else "https", "http"]
        return [f"{scheme}://{host}" for scheme, host in zip(schemes, hosts, strict=False)]

    @property
    def certificate(self) -> Certificate:
        """Of the public address."""
        return self._certificate

    @property
    def body_bytes(self) -> int:
        """Bytes of bodies that are coming, that wait, or whose answer has not begun."""
        return sum(shared.body_bytes for shared in self._held.values())

    @property
    def tokens(self) -> SignedTokens | None:
        """What verifies JSON Web Tokens; None where they are no keys."""
        return self.api.tenants.tokens

    def _cache_shape(self, model: str) -> CacheShape:
        replicas = [one for one in self.dispatcher.replicas if one.ledger.kv_blocks is not None and one.serves(model)]
        sizes = {one.ledger.kv_blocks.block_tokens for one in replicas if one.ledger.kv_blocks is not None} - {0}
        is_adapter = any(one.ledger.adapters and model in one.ledger.adapters for one in replicas)
        return CacheShape(sizes, model if is_adapter else "")

    def _cached_somewhere(self, queued: QueuedRequest) -> int | None:
        return cached_somewhere(queued, self.dispatcher.replicas)

    def _budgets_in_steps(self) -> Iterator[dict[str, dict[str, object]]]:
        return self.dispatcher.budgets.saved_in_steps()

    async def start(self) -> None:
        """Listen and begin to probe the replicas.

        Raises OSError if an address cannot be listened on, and ValueError if the folder of batches cannot be used or
        the recording cannot be opened.
        """
        if self._batches is not None:
            await self._batches.start()
        if self.tokens is not None:
            await self.tokens.ask()
        settings = self.settings
        limits = within_descriptors(settings.wire, _CLIENTS_SHARE)
        if limits.connections < settings.wire.connections:
            fields = {"connections": limits.connections}
            log.info("connections are bounded by this process's limit of file descriptors", extra={"fields": fields})
        await self._listen(settings.listen, "listen", self.site, self._certificate.context, limits)
        if settings.admin_listen is not None:
            admin = AdminRoutes(self.site)
            limits = within_descriptors(settings.wire, _ADMIN_SHARE)
            await self._listen(settings.admin_listen, "admin_listen", admin, None, limits)
        if self._recorder is not None:
            self._recorder.open()
        self._take_replicas(settings)
        await self._leadership.start()
        self._sweeping = asyncio.create_task(self._sweep())
        self.loop_watch.start()

    async def _listen(
        self, address: str, key: str, site: RequestHandler, tls: ssl.SSLContext | None, limits: WireLimits
    ) -> None:
        host, port = host_and_port(address, key)
        shared = self._held["public" if key == "listen" else "admin"] = SharedLimits(limits, ReadPacer())

        def connect(place: ConnectionPlace | None = None) -> ClientConnection:
            return ClientConnection(site, limits, self._clients, self._clock, shared, place)

        try:
            if tls is None:  # uvloop accepts one connection at a turn of the loop
                server = await asyncio.get_running_loop().create_server(connect, host, port, backlog=BACKLOG)
                self._servers.append(server)
            else:
                listener = TlsListener(connect, shared, tls, limits.head_seconds)
                await listener.listen(host, port)
                self._servers.append(listener)
        except (OSError, UnicodeError) as error:
            raise OSError(f"cannot listen on {key} {address!r}: {getattr(error, 'strerror', None) or error}") from None

    def limits_of(self, listener: str) -> SharedLimits:
        """Counts of what the clients of one more listener hold, which the metrics show by its name."""
        shared = self._held[listener] = SharedLimits(self.settings.wire)
        return shared

    def _replica(self, settings: ReplicaSettings) -> UpstreamReplica:
        return UpstreamReplica(settings, self.settings.health, self._clock, lambda: self.dispatcher.replicas, self._via)

    def _take_replicas(self, settings: Settings) -> None:
        self._register.replace(settings)
        self._membership.take(self._register.wanted(), settings.health)
        self.dispatcher.replace(self.twin.in_force(settings), self._membership.replicas, self._clock())

    def _replicas_changed(self) -> None:
        health, why_gone = self.settings.health, self._register.why_gone
        if self._membership.take(self._register.wanted(), health, why_gone):
            self.dispatcher.replace_replicas(self._membership.replicas, self._clock())

    def reload(self, settings: Settings, tenants: ApiKeys | None = None) -> None:
        """Other settings from now on, no request lost.

        Addresses, wire limits, record, state file, tokenizers, tracing and the names of the certificate's files stay as
        they were; the files are read again.

        Raises ValueError, one sentence, if a key or the certificate cannot be read; then nothing changes.
        """
        if tenants is None:
            tenants = ApiKeys(settings.tenant, signed_tokens(settings.jwt, self.tokens))
        admin_keys = AdminKeys(settings)
        check_tuning(settings)
        self._certificate.renew()
        for server in self._servers:
            if isinstance(server, TlsListener) and self._certificate.context is not None:
                server.tls = self._certificate.context
        self.settings = self._learned.settings = settings
        self.twin.change(settings)
        self.api.tenants, self.site.administration.keys = tenants, admin_keys
        self.api.trusted_proxies = TrustedProxies(settings.trusted_proxies)
        self._take_replicas(settings)
        self.api.keep_alives.plan_again()

    async def _sweep(self) -> None:
        rounds = 0
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            rounds += 1
            try:
                await self._round(is_whole=rounds % _ROUNDS_A_SECOND == 0)
            except Exception as error:  # a fault in one round must not end the checks of all deadlines
                self.dispatcher.errors.contained("sweep", error)

    async def _round(self, *, is_whole: bool) -> None:
        now = self._clock()
        guard = self.dispatcher.errors.guard
        for number, client in enumerate(list(self._clients), 1):
            guard("sweep", client.sweep, now)
            if not number % _CLIENTS_A_TURN:
                await asyncio.sleep(0)
        for number, _ in enumerate(self.dispatcher.time_limits.end_overtime(now), 1):
            if not number % _REQUESTS_A_TURN:
                await asyncio.sleep(0)
        if not is_whole:
            return
        for number, _ in enumerate(self.dispatcher.sweep_in_steps(now), 1):
            if not number % _REQUESTS_A_TURN:
                await asyncio.sleep(0)
        guard("sweep", self._membership.sweep)
        self._refusal_log.flush()
        self._hour.look(sum(map(len, self.dispatcher.queues.values())))
        if self.tokens is not None and self.tokens.is_due:
            self._asking_for_keys = asyncio.create_task(self.tokens.ask())
        if self._recorder is not None:
            guard("record", self._recorder.flush_soon, now)
        for sentence in self._learned.trials_ended():
            log.info(sentence)
        guard("twin", self.twin.follow, self.dispatcher, now)
        if now - self._saved_at >= self.settings.state.save_seconds and self._leadership.may_serve():
            self._saved_at = now
            guard("state", self._learned.save_soon)

    async def announce_end(self) -> None:
        """Say at `/ready` that the address closes soon, and serve on until balancers had the time to notice."""
        self.site.is_leaving = True
        await self._leadership.leave()
        await asyncio.sleep(self.settings.health.lame_duck_seconds)

    async def drain(self) -> bool:
        """Take no more requests, finish those inside, then stop; False if some had to be cut off."""
        self.dispatcher.is_draining = True
        await self._leadership.leave()
        if self._batches is not None:
            self._batches.leave()
        for server in self._servers[:1]:
            server.close()
        for client in list(self._clients):
            client.close_when_idle()
        until = self._clock() + self.settings.health.drain_seconds
        while self._is_busy() and self._clock() < until:
            await asyncio.sleep(0.02)
        whole = not self._is_busy()
        await self.stop()
        return whole

    def _is_busy(self) -> bool:
        """Whether a request is inside or still read, or a client has not read all of its answer."""
        return bool(self.dispatcher.counts.inside) or any(client.is_served for client in self._clients)

    async def stop(self) -> None:
        """Stop at once; requests inside are cut off."""
        may_save = self._leadership.may_serve()
        await self._leadership.leave()
        self.loop_watch.stop()
        self._hold_timer.close()
        self.api.keep_alives.close()
        for server in self._servers:
            server.close()
        self._model_lists.close()
        tasks = [*self._register.cancel(), *self._membership.cancel()]
        if self._sweeping is not None:
            tasks.append(self._sweeping)
        if self._asking_for_keys is not None:
            tasks.append(self._asking_for_keys)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.cut_off = self.dispatcher.counts.inside
        self.dispatcher.end_all()
        if self._batches is not None:
            await self._batches.stop()
        for client in list(self._clients):
            client.hang_up()
        self._membership.close()
        await asyncio.sleep(0)
        self._prompt_count.close()
        if may_save:
            await self._learned.save()
        await self._leadership.close()
        await asyncio.to_thread(self.twin.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._recorder is not None:
            await self._recorder.end()


def _log_look(sentence: str) -> None:
    log.info("auto: %s", sentence)


def _later(seconds: float, act: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, act)


def _at_next_turn(act: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_soon(act)
