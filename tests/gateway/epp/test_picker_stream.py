"""One stream of messages as no Envoy at hand sends it: ended twice, with trailers or a list of engines, ill-formed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from headway.gateway.openai.request_body import LARGE_BYTES
from headway.gateway.settings import PolicySettings
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.shared_limits import SharedLimits
from tests.support.gateway_setup import RunGateway, Setup

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp.grpc_call import GrpcStatus
from headway.gateway.epp.picker_stream import PickerStream

BODY = b'{"model":"m","prompt":"hello"}'


class Channel:
    """Envoy's side of one stream: what was sent to it."""

    def __init__(self) -> None:
        self.written: list[pb.ProcessingResponse] = []
        self.ended: GrpcStatus | None = None

    def send(self, messages: Iterable[bytes]) -> None:
        self.written += map(pb.ProcessingResponse.FromString, messages)

    def finish(self, status: GrpcStatus, message: str = "") -> None:
        self.ended = status


def head(*more: tuple[str, bytes], path: bytes = b"/v1/completions", **fields: Any) -> pb.ProcessingRequest:
    pairs = [(":method", b"POST"), (":path", path), (":authority", b"x"), (":scheme", b"http"), *more]
    headers = [pb.HeaderValue(key=name, raw_value=value) for name, value in pairs]
    return pb.ProcessingRequest(
        request_headers=pb.HttpHeaders(headers=pb.HeaderMap(headers=headers)),
        protocol_config=pb.ProtocolConfiguration(request_body_mode=pb.FULL_DUPLEX_STREAMED),
        **fields,
    )


def part(body: bytes, *, ends: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=body, end_of_stream=ends))


def answered(status: bytes, details: str = "") -> pb.ProcessingRequest:
    """`details`: Envoy's `response.code_details`, where it tells them."""
    headers = pb.HeaderMap(headers=[pb.HeaderValue(key=":status", raw_value=status)])
    message = pb.ProcessingRequest(response_headers=pb.HttpHeaders(headers=headers))
    if details:
        message.attributes["envoy.filters.http.ext_proc"]["response.code_details"] = details
    return message


async def played(
    setup: Setup, messages: Sequence[pb.ProcessingRequest], shared: SharedLimits | None = None, fallbacks: int = 0
) -> list[pb.ProcessingResponse]:
    """What is written when these messages come, one at each turn, and then the end."""
    channel = Channel()
    shared = shared or SharedLimits(WireLimits())
    picked = PickerStream(setup.gateway.api, shared, channel, "127.0.0.1", fallbacks)
    for message in messages:
        picked.came(message.SerializeToString())
        await asyncio.sleep(0.02)
    picked.over()
    assert channel.ended is GrpcStatus.OK
    assert (shared.body_bytes, shared.connections) == (0, 0)
    return channel.written


def kinds(written: list[pb.ProcessingResponse]) -> list[str | None]:
    return [message.WhichOneof("response") for message in written]


def test_a_body_that_ends_twice_is_sent_once(run_gateway: RunGateway) -> None:
    """Envoy's issue 46237: a second end of a body above 1 MB."""

    async def scenario(setup: Setup) -> None:
        written = await played(setup, [head(), part(BODY, ends=True), part(b"", ends=True), answered(b"200")])
        assert kinds(written) == ["request_headers", "request_body", "response_headers"]
        assert written[1].request_body.response.body_mutation.streamed_response.body == BODY
        assert setup.dispatcher.counts.arrived == 1

    run_gateway(scenario)


def test_trailers_end_a_body_and_follow_it(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        trailers = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
        written = await played(setup, [head(), part(BODY, ends=False), trailers])
        assert kinds(written) == ["request_headers", "request_body", "request_trailers"]
        assert not written[1].request_body.response.body_mutation.streamed_response.end_of_stream

    run_gateway(scenario)


def test_a_list_of_endpoints_restricts_as_a_text_does(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        wanted = f"127.0.0.1:{setup.replicas[1].port}"
        metadata = pb.Metadata()
        subset = metadata.filter_metadata["envoy.lb.subset_hint"]
        subset.get_or_create_list("x-gateway-destination-endpoint-subset").extend([wanted])
        written = await played(setup, [head(metadata_context=metadata), part(BODY, ends=True)])
        chosen = written[0].request_headers.response.header_mutation.set_headers[0].header
        assert (chosen.key, chosen.raw_value) == ("x-gateway-destination-endpoint", wanted.encode())
        assert written[0].dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"] == wanted
        assert written[0].request_headers.response.clear_route_cache

    run_gateway(scenario, replicas=2)


@pytest.mark.parametrize(("status", "refusals", "failures"), [(b"429", 1, 0), (b"503", 1, 0), (b"500", 0, 1)])
def test_an_engine_that_is_full_is_told_from_one_that_fails(
    run_gateway: RunGateway, status: bytes, refusals: int, failures: int
) -> None:
    async def scenario(setup: Setup) -> None:
        await played(setup, [head(), part(BODY, ends=True), answered(status)])
        state = setup.dispatcher.replicas[0].state
        assert (state.refusals_total, state.failure_share.failed_in_all) == (refusals, failures)

    run_gateway(scenario)


@pytest.mark.parametrize(
    ("status", "details", "failures", "outcome"),
    [
        (b"503", "upstream_reset_before_response_started{connection_termination}", 1, "failed"),
        (b"504", "upstream_response_timeout", 1, "failed"),
        (b"503", "no_healthy_upstream", 1, "failed"),
        (b"503", "upstream_reset_before_response_started{overflow}", 0, "failed"),
        (b"403", "rbac_access_denied_matched_policy[none]", 0, "failed"),
        (b"413", "request_payload_too_large", 0, "failed"),
        (b"200", "via_upstream", 0, "completed"),
    ],
)
def test_what_envoy_itself_refuses_is_no_failure_of_an_engine(
    run_gateway: RunGateway, status: bytes, details: str, failures: int, outcome: str
) -> None:
    """Else a client whose requests Envoy denies could eject every engine."""

    async def scenario(setup: Setup) -> None:
        await played(setup, [head(), part(BODY, ends=True), answered(status, details)])
        assert setup.dispatcher.replicas[0].state.failure_share.failed_in_all == failures
        assert setup.dispatcher.counts.ended[outcome] == 1

    run_gateway(scenario)


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (head(("content-length", b"many")), 400),
        (head(("content-length", b"9" * 5_000)), 400),
        (head(path=b"/v1/../metrics"), 400),
        (head(path=b"/v1/load_lora_adapter"), 404),
        (head(path=b""), 400),
        (head(("x-headway-no-queue", b"true"), ("x-headway-no-queue", b"false")), 400),
    ],
)
def test_a_head_that_is_refused_is_answered_at_once(
    run_gateway: RunGateway, message: pb.ProcessingRequest, status: int
) -> None:
    async def scenario(setup: Setup) -> None:
        written = await played(setup, [message, part(BODY, ends=True)])
        assert kinds(written) == ["immediate_response"]
        assert written[0].immediate_response.status.code == status

    run_gateway(scenario)


def test_a_fault_in_our_own_code_ends_one_request(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(setup: Setup) -> None:
        def breaks(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as broken:
            broken.setattr("headway.gateway.epp.picker_stream.messages.destination", breaks)
            written = await played(setup, [head(), part(BODY, ends=True)])
        assert kinds(written) == ["immediate_response"]
        assert written[0].immediate_response.status.code == 500
        assert kinds(await played(setup, [head(), part(BODY, ends=True)])) == ["request_headers", "request_body"]

    run_gateway(scenario)


def test_streams_beyond_the_limit_are_refused(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        written = await played(setup, [head()], SharedLimits(WireLimits(connections=0)))
        assert written[0].immediate_response.status.code == 503

    run_gateway(scenario)


def test_a_stream_that_ends_while_its_large_body_is_read_asks_for_nothing(run_gateway: RunGateway) -> None:
    """Else its request would take a replica's place until the replica is blamed for its silence."""

    async def scenario(setup: Setup) -> None:
        channel, shared = Channel(), SharedLimits(WireLimits())
        large = b'{"model":"m","prompt":"%b"}' % (b"hello " * (LARGE_BYTES // 2))
        picked = PickerStream(setup.gateway.api, shared, channel, "127.0.0.1")
        for message in (head(), part(large, ends=True)):
            picked.came(message.SerializeToString())
        picked.over()
        await asyncio.sleep(0.2)  # any steps that are left are taken
        counts, replica = setup.dispatcher.counts, setup.dispatcher.replicas[0]
        assert (counts.arrived, counts.inside, replica.ledger.requests) == (0, 0, 0)
        assert not channel.written

    run_gateway(scenario)


def test_the_least_loaded_stand_in_first(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for replica, requests in zip(setup.dispatcher.replicas, (0, 2, 3, 1), strict=True):
            replica.ledger.requests = requests
        written = await played(setup, [head(), part(BODY, ends=True)], fallbacks=2)
        endpoints = written[0].dynamic_metadata["envoy.lb"]["x-gateway-destination-endpoint"]
        assert endpoints == ",".join(f"127.0.0.1:{setup.replicas[number].port}" for number in (0, 3, 1))
        for replica in setup.dispatcher.replicas:
            replica.ledger.requests = 0

    run_gateway(scenario, replicas=4, policies=PolicySettings(routing="round-robin"))


def test_a_stream_that_ends_before_its_body_is_not_refused_later(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        shared = SharedLimits(WireLimits(body_seconds=0.1))
        written = await played(setup, [head(), part(b"{", ends=False)], shared)
        await asyncio.sleep(0.2)
        assert not written
        assert "headway_rejected_requests_total{" not in (await setup.get("/metrics")).body.decode()
        late = await played(setup, [head(), *[part(b"{", ends=False)] * 8], shared)
        assert [message.immediate_response.status.code for message in late] == [408]

    run_gateway(scenario)


@pytest.mark.parametrize("is_queued", [True, False])
def test_a_second_head_makes_no_second_request(run_gateway: RunGateway, is_queued: bool) -> None:
    """Else the first one would keep its place at a replica, or in the queue, and never end."""

    async def scenario(setup: Setup) -> None:
        ends_at_head = head(("content-length", b"0"))
        ends_at_head.request_headers.end_of_stream = True
        channel = Channel()
        picked = PickerStream(setup.gateway.api, SharedLimits(WireLimits()), channel, "127.0.0.1")
        for message in [head(), part(BODY, ends=is_queued), ends_at_head]:
            picked.came(message.SerializeToString())
        await asyncio.sleep(0.02)
        assert channel.ended is GrpcStatus.INVALID_ARGUMENT
        picked.over()
        assert setup.dispatcher.counts.arrived == int(is_queued)
        assert [replica.ledger.requests for replica in setup.dispatcher.replicas] == [0]

    run_gateway(scenario)


@pytest.mark.parametrize(
    "message",
    [part(BODY, ends=True), pb.ProcessingRequest(request_trailers=pb.HttpTrailers())],
    ids=["body", "trailers"],
)
def test_what_comes_before_the_head_ends_the_stream(run_gateway: RunGateway, message: pb.ProcessingRequest) -> None:
    async def scenario(setup: Setup) -> None:
        channel = Channel()
        picked = PickerStream(setup.gateway.api, SharedLimits(WireLimits()), channel, "127.0.0.1")
        picked.came(message.SerializeToString())
        assert channel.ended is GrpcStatus.INVALID_ARGUMENT

    run_gateway(scenario)


def with_headers(kind: str, number: int) -> pb.ProcessingRequest:
    headers = pb.HttpHeaders(headers=pb.HeaderMap(headers=[pb.HeaderValue(key="a")] * number))
    return pb.ProcessingRequest(**{kind: headers})


def after_a_small_body(message: pb.ProcessingRequest) -> bytes:
    return part(b"x", ends=False).SerializeToString() + message.SerializeToString()


@pytest.mark.parametrize(
    ("message", "status"),
    [
        (with_headers("request_headers", 2_001).SerializeToString(), GrpcStatus.INVALID_ARGUMENT),
        (with_headers("response_headers", 2_001).SerializeToString(), GrpcStatus.INVALID_ARGUMENT),
        (with_headers("response_headers", 300_000).SerializeToString(), GrpcStatus.RESOURCE_EXHAUSTED),
        (after_a_small_body(with_headers("request_headers", 300_000)), GrpcStatus.RESOURCE_EXHAUSTED),
    ],
    ids=["request", "answer", "long", "behind a body"],
)
def test_messages_of_very_many_small_fields_are_not_read(
    run_gateway: RunGateway, message: bytes, status: GrpcStatus
) -> None:
    """To read 16 MiB of them takes seconds, in which every other request would wait."""

    async def scenario(setup: Setup) -> None:
        channel = Channel()
        picked = PickerStream(setup.gateway.api, SharedLimits(WireLimits()), channel, "127.0.0.1")
        picked.came(message)
        assert (channel.ended, channel.written) == (status, [])

    run_gateway(scenario)


@pytest.mark.parametrize("as_text", [True, False])
def test_a_subset_of_very_many_endpoints_is_refused(run_gateway: RunGateway, as_text: bool) -> None:
    async def scenario(setup: Setup) -> None:
        names = [f"10.0.{one >> 8}.{one & 255}:80" for one in range(3_000)]
        metadata = pb.Metadata()
        subset = metadata.filter_metadata["envoy.lb.subset_hint"]
        subset["x-gateway-destination-endpoint-subset"] = ",".join(names) if as_text else names
        (written,) = await played(setup, [head(metadata_context=metadata)])
        assert (written.immediate_response.status.code, setup.dispatcher.counts.arrived) == (400, 0)

    run_gateway(scenario)


def test_a_second_head_of_a_request_without_a_body_leaves_none_inside(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        asks = head(path=b"/v1/responses/resp_1")
        asks.request_headers.headers.headers[0].raw_value = b"GET"
        asks.request_headers.end_of_stream = True
        await played(setup, [asks, asks])
        assert (setup.dispatcher.counts.arrived, setup.dispatcher.counts.inside) == (1, 0)

    run_gateway(scenario)
