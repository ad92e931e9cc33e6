"""The endpoint picker's gRPC server: external processing for Envoy, and health by the names that platforms ask for."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError

from headway.config.address import host_and_port
from headway.gateway.certificate import tls_context
from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp.grpc_call import CallHandler, GrpcCall, GrpcStatus
from headway.gateway.epp.http2_calls import Http2Limits
from headway.gateway.epp.http2_connection import Http2Connection
from headway.gateway.epp.picker_stream import PickerStream
from headway.gateway.gateway import Gateway
from headway.gateway.settings import ReplicaSettings, Settings
from headway.gateway.wire.shared_limits import ConnectionPlace, SharedLimits
from headway.gateway.wire.tls_listener import BACKLOG, TlsListener

PROCESSOR = "envoy.service.ext_proc.v3.ExternalProcessor"
_PROCESS = f"/{PROCESSOR}/Process".encode()
_CHECK = b"/grpc.health.v1.Health/Check"
_LIVENESS = ("", "liveness")
_READINESS = ("readiness", PROCESSOR)
_CONNECTIONS_MAX = 4_096  # each worker of an Envoy has one; kubelet one for each question
_END_SECONDS = 1.0
_LOOK_SECONDS = 0.01
_SWEEP_SECONDS = 1.0
log = logging.getLogger("headway.gateway")


@dataclass(frozen=True, slots=True)
class PickerSettings:
    """How Envoy reaches the picker.

    Attributes:
        listen: address of the gRPC server.
        envoy_timeout_seconds: the shortest of Envoy's timeouts that end a waiting request; None where none is known.
        fallbacks: further engines named for each request, for the case that Envoy cannot reach the first.
        speaks_tls: by the certificate of the public address, and asking for Envoy's own as that one does.
    """

    listen: str = "127.0.0.1:9002"
    envoy_timeout_seconds: float | None = None
    fallbacks: int = 0
    speaks_tls: bool = False


def check_picker(picker: PickerSettings, settings: Settings) -> None:
    """Raises ValueError, one sentence, if Envoy could not work with these settings."""
    host_and_port(picker.listen, "grpc-listen")
    told, queued = picker.envoy_timeout_seconds, settings.queue.timeout_seconds
    if told is not None and queued >= told:
        raise ValueError(
            f"`queue.timeout_seconds` is {queued:g} and Envoy's timeout {told:g} s, so Envoy would give up requests "
            "that still wait; make the first one smaller"
        )
    if picker.speaks_tls and settings.tls_certificate is None:
        raise ValueError("`--grpc-tls` needs a certificate; name its files, `tls_certificate` and `tls_key`")
    for number, replica in enumerate(settings.replica):
        check_engine(replica, f"replica[{number}].url")


def check_engine(replica: ReplicaSettings, where: str = "url") -> None:
    """Raises ValueError, one sentence, if Envoy cannot be told where the engine is."""
    host = urlsplit(replica.url).hostname or ""
    if not _is_address(host):
        raise ValueError(f"{where} must name the engine by its IP address, which is all that Envoy takes; got {host!r}")


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


class PickerListener:
    """Beside the addresses of one gateway, which it shares queue and settings with."""

    def __init__(self, gateway: Gateway, picker: PickerSettings) -> None:
        self._gateway = gateway
        self._picker = picker
        self._shared = shared = gateway.limits_of("envoy")
        wire = shared.limits
        self._limits = Http2Limits(_CONNECTIONS_MAX, wire.connections, wire.head_seconds, wire.stalled_seconds)
        self._opened: set[Http2Connection] = set()
        self._server: asyncio.Server | TlsListener | None = None
        self._certificate: ssl.SSLContext | None = None  # of the public address, as the one in use here was made
        self._sweeping: asyncio.Task[None] | None = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises OSError if the address cannot be listened on."""
        address = self._picker.listen
        host, port = host_and_port(address, "grpc-listen")
        loop = asyncio.get_running_loop()
        try:
            self._server = await self._listen(host, port)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise OSError(f"cannot listen on grpc-listen {address!r}: {why}") from None
        self.port = self._server.sockets[0].getsockname()[1]
        self._sweeping = loop.create_task(self._sweep())

    async def _listen(self, host: str, port: int) -> asyncio.Server | TlsListener:
        context = self._renewed_context() if self._picker.speaks_tls else None
        if context is None:
            return await asyncio.get_running_loop().create_server(self._connect, host, port, backlog=BACKLOG)
        places = SharedLimits(replace(self._shared.limits, connections=_CONNECTIONS_MAX, address_connections=None))
        listener = TlsListener(self._connect, places, context, self._limits.head_seconds)
        await listener.listen(host, port)
        return listener

    def _renewed_context(self) -> ssl.SSLContext | None:
        """As that of the public address, but for HTTP/2."""
        self._certificate = self._gateway.certificate.context
        context = tls_context(self._gateway.settings)
        if context is not None:
            context.set_alpn_protocols(["h2"])
        return context

    @property
    def told(self) -> dict[str, object]:
        """Where it listens, for the log."""
        host, _ = host_and_port(self._picker.listen, "grpc-listen")
        return {"grpc": f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"}

    async def stop(self) -> None:
        """End what is left, and listen no more."""
        if self._server is None or self._sweeping is None:
            return
        self._server.close()
        for one in list(self._opened):
            one.drain()
        until = time.monotonic() + _END_SECONDS
        while self._opened and time.monotonic() < until:
            await asyncio.sleep(_LOOK_SECONDS)
        for one in list(self._opened):
            one.abort()
        while self._opened:
            await asyncio.sleep(_LOOK_SECONDS)
        self._sweeping.cancel()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP_SECONDS)
            for one in list(self._opened):
                one.sweep(time.monotonic())
            if isinstance(self._server, TlsListener) and self._certificate is not self._gateway.certificate.context:
                self._renew(self._server)

    def _renew(self, listener: TlsListener) -> None:
        """A reload has read the certificate again."""
        try:
            listener.tls = self._renewed_context() or listener.tls
        except ValueError as error:
            log.error("grpc-listen keeps its certificate: %s", error)

    def _connect(self, place: ConnectionPlace | None = None) -> Http2Connection:
        return Http2Connection(self._begin, self._opened, self._limits, self._hold, time.monotonic, place)

    def _hold(self, more_bytes: int) -> bool:
        self._shared.hold(more_bytes)
        return self._shared.has_room()

    def _begin(self, path: bytes, call: GrpcCall) -> CallHandler | None:
        if path == _PROCESS:
            return PickerStream(self._gateway.api, self._shared, call, call.peer, self._picker.fallbacks)
        return HealthCall(self._status_of, call) if path == _CHECK else None

    def _status_of(self, service: str) -> int | None:
        if service in _LIVENESS or (service in _READINESS and self._gateway.site.is_ready):
            return pb.HealthCheckResponse.SERVING
        return pb.HealthCheckResponse.NOT_SERVING if service in _READINESS else None


class HealthCall:
    """One question of gRPC's health service."""

    def __init__(self, status_of: Callable[[str], int | None], call: GrpcCall) -> None:
        """`status_of`: how a service is, by its name; None where there is no such service."""
        self._status_of = status_of
        self._call = call

    def came(self, message: bytes) -> None:
        """The question."""
        try:
            service = pb.HealthCheckRequest.FromString(message).service
        except DecodeError:
            self._call.finish(GrpcStatus.INVALID_ARGUMENT, "a message is no HealthCheckRequest")
            return
        status = self._status_of(service)
        if status is None:
            self._call.finish(GrpcStatus.NOT_FOUND, f"no service {service[:80]!r} here")
        else:
            self._call.send([pb.HealthCheckResponse(status=status).SerializeToString()])  # type: ignore[arg-type]
            self._call.finish(GrpcStatus.OK)

    def over(self) -> None:
        """Without a question there is no answer."""
        self._call.finish(GrpcStatus.INVALID_ARGUMENT, "a question is missing")
