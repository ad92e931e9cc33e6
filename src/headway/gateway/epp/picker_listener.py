"""The endpoint picker's gRPC server: external processing for Envoy, and health by the names that platforms ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

import grpc

from headway.config.address import host_and_port
from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp.picker_stream import PickerStream
from headway.gateway.gateway import Gateway
from headway.gateway.settings import Settings

PROCESSOR = "envoy.service.ext_proc.v3.ExternalProcessor"
_HEALTH = "grpc.health.v1.Health"
_LIVENESS = ("", "liveness")
_READINESS = ("readiness", PROCESSOR)
_END_SECONDS = 1.0
_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a second process on the same port must fail, not share it
    ("grpc.max_receive_message_length", 16 << 20),
    ("grpc.keepalive_permit_without_calls", 1),
)


@dataclass(frozen=True, slots=True)
class PickerSettings:
    """How Envoy reaches the picker.

    Attributes:
        listen: address of the gRPC server.
        envoy_timeout_seconds: the shortest of Envoy's timeouts that end a waiting request; None where none is known.
        fallbacks: further engines named for each request, for the case that Envoy cannot reach the first.
    """

    listen: str = "127.0.0.1:9002"
    envoy_timeout_seconds: float | None = None
    fallbacks: int = 0


def check_picker(picker: PickerSettings, settings: Settings) -> None:
    """Raises ValueError, one sentence, if Envoy could not work with these settings."""
    host_and_port(picker.listen, "grpc-listen")
    told, queued = picker.envoy_timeout_seconds, settings.queue.timeout_seconds
    if told is not None and queued >= told:
        raise ValueError(
            f"`queue.timeout_seconds` is {queued:g} and Envoy's timeout {told:g} s, so Envoy would give up requests "
            "that still wait; make the first one smaller"
        )
    for number, replica in enumerate(settings.replica):
        host = urlsplit(replica.url).hostname or ""
        if not _is_address(host):
            raise ValueError(
                f"replica[{number}].url must name the engine by its IP address, which is all that Envoy takes; "
                f"got {host!r}"
            )


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
        self._shared = gateway.limits_of("envoy")
        self._server: Any = None
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises OSError if the address cannot be listened on."""
        self._server = server = grpc.aio.server(options=_OPTIONS)
        process = grpc.stream_stream_rpc_method_handler(
            self._process, pb.ProcessingRequest.FromString, pb.ProcessingResponse.SerializeToString
        )
        check = grpc.unary_unary_rpc_method_handler(
            self._check, pb.HealthCheckRequest.FromString, pb.HealthCheckResponse.SerializeToString
        )
        handlers: Mapping[str, Mapping[str, object]] = {PROCESSOR: {"Process": process}, _HEALTH: {"Check": check}}
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, methods) for name, methods in handlers.items())
        )
        address = self._picker.listen
        try:
            self.port = server.add_insecure_port(address)
        except RuntimeError:
            self.port = 0
        if not self.port:
            raise OSError(f"cannot listen on grpc-listen {address!r}: it is in use, or not an address of this machine")
        await server.start()

    @property
    def told(self) -> dict[str, object]:
        """Where it listens, for the log."""
        host, _ = host_and_port(self._picker.listen, "grpc-listen")
        return {"grpc": f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"}

    async def stop(self) -> None:
        """End what is left, and listen no more."""
        if self._server is not None:
            await self._server.stop(_END_SECONDS)

    async def _process(self, requests: object, context: Any) -> None:
        peer, end, fallbacks = _address_of(context.peer()), grpc.aio.EOF, self._picker.fallbacks
        await PickerStream(self._gateway.api, self._shared, context, peer, end, fallbacks).run()

    async def _check(self, request: pb.HealthCheckRequest, context: Any) -> pb.HealthCheckResponse:
        if request.service in _LIVENESS or (request.service in _READINESS and self._gateway.site.is_ready):
            return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVING)
        if request.service in _READINESS:
            return pb.HealthCheckResponse(status=pb.HealthCheckResponse.NOT_SERVING)
        await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r} here")
        return pb.HealthCheckResponse(status=pb.HealthCheckResponse.SERVICE_UNKNOWN)


def _address_of(peer: str) -> str:
    """The address of a peer as gRPC names it: `ipv4:127.0.0.1:5000`, or `ipv6:%5B::1%5D:5000`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "127.0.0.1"
    return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
