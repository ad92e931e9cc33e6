"""The picker's server and the client of the package grpcio, which is written to the same documents by others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.support.gateway_setup import RunGateway, Setup

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
pytest.importorskip("grpc", reason="grpcio, a client for this test, is not installed")
import grpc

from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp.picker_listener import PROCESSOR, PickerListener, PickerSettings
from headway.gateway.wire.limits import WireLimits
from tests.gateway.epp.test_picker_stream import BODY, head, part

Process = Callable[..., Any]


@asynccontextmanager
async def process_of(setup: Setup) -> AsyncIterator[tuple[PickerListener, Process]]:
    listener = PickerListener(setup.gateway, PickerSettings("127.0.0.1:0"))
    await listener.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        yield (
            listener,
            channel.stream_stream(
                f"/{PROCESSOR}/Process", pb.ProcessingRequest.SerializeToString, pb.ProcessingResponse.FromString
            ),
        )
    await listener.stop()


async def answered_kinds(call: Any, number: int) -> list[str]:
    return [(await call.read()).WhichOneof("response") for _ in range(number)]


def test_two_hundred_streams_of_one_connection_are_each_answered(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with process_of(setup) as (_, process):

            async def one() -> None:
                call = process()
                await call.write(head())
                await call.write(part(BODY, ends=True))
                assert await answered_kinds(call, 2) == ["request_headers", "request_body"]
                await call.done_writing()
                assert await call.read() is grpc.aio.EOF
                assert await call.code() is grpc.StatusCode.OK

            await asyncio.gather(*(one() for _ in range(200)))
        assert setup.dispatcher.counts.arrived == 200
        assert setup.dispatcher.counts.inside == 0

    run_gateway(scenario)


def test_a_body_of_three_megabytes_comes_and_goes_whole(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        body = b'{"model":"m","prompt":"%b"}' % (b"hello " * 500_000)
        async with process_of(setup) as (_, process):
            call = process()
            await call.write(head())
            await call.write(part(body[:1_900_000], ends=False))
            await call.write(part(body[1_900_000:], ends=True))
            assert await answered_kinds(call, 1) == ["request_headers"]
            got, is_last = b"", False
            while not is_last:
                streamed = (await call.read()).request_body.response.body_mutation.streamed_response
                got, is_last = got + streamed.body, streamed.end_of_stream
            assert got == body
            await call.done_writing()
            assert await call.code() is grpc.StatusCode.OK

    run_gateway(scenario)


def test_a_call_that_is_cancelled_or_times_out_leaves_the_queue(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with process_of(setup) as (_, process):
            runs = process()
            await runs.write(head())
            await runs.write(part(BODY, ends=True))
            assert await answered_kinds(runs, 1) == ["request_headers"]
            for call, end in ((process(), "cancel"), (process(timeout=1.5), "timeout")):
                await call.write(head())
                await call.write(part(BODY, ends=True))
                await setup.until(lambda: setup.dispatcher.counts.inside == 2)
                if end == "cancel":
                    call.cancel()
                await setup.until(lambda: setup.dispatcher.counts.inside == 1)
            assert setup.dispatcher.counts.ended["cancelled"] == 2
            runs.cancel()
            await setup.until(lambda: setup.dispatcher.counts.inside == 0)

    run_gateway(scenario, seats=1)


async def _failure(make: Callable[[], Awaitable[object]]) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await make()
    return failed.value


def test_what_is_no_message_or_method_of_ours_is_said(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with process_of(setup) as (listener, _):
            async with grpc.aio.insecure_channel(
                f"127.0.0.1:{listener.port}", compression=grpc.Compression.Gzip
            ) as channel:
                raw = channel.stream_unary(f"/{PROCESSOR}/Process")
                none = channel.unary_unary("/no.Such/Method")
                failure = await _failure(lambda: none(b""))
                assert failure.code() is grpc.StatusCode.UNIMPLEMENTED
                packed = await _failure(lambda: raw(iter([bytes(10_000)])))
                assert packed.code() is grpc.StatusCode.UNIMPLEMENTED
                assert "compressed" in (packed.details() or "")
            async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
                raw = channel.stream_unary(f"/{PROCESSOR}/Process")
                failure = await _failure(lambda: raw(iter([b"\xff\xff\xff"])))
                assert failure.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "ProcessingRequest" in (failure.details() or "")

    run_gateway(scenario)


def test_a_picker_that_stops_lets_streams_end_and_cuts_those_that_do_not(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with process_of(setup) as (listener, process):
            ends, stays = process(), process()
            for call in (ends, stays):
                await call.write(head())
                await call.write(part(BODY, ends=True))
                assert await answered_kinds(call, 2) == ["request_headers", "request_body"]
            stopping = asyncio.create_task(listener.stop())
            await ends.done_writing()
            assert await ends.code() is grpc.StatusCode.OK
            assert await stays.code() is grpc.StatusCode.UNAVAILABLE
            await stopping
            assert setup.dispatcher.counts.inside == 0

    run_gateway(scenario)


def test_a_body_that_does_not_come_is_not_waited_for(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with process_of(setup) as (_, process):
            call = process()
            await call.write(head())
            await call.write(part(b"{", ends=False))
            answer = await call.read()
            assert answer.immediate_response.status.code == 408
            call.cancel()
            await setup.until(lambda: setup.gateway.body_bytes == 0)

    run_gateway(scenario, wire=WireLimits(body_seconds=0.3))
