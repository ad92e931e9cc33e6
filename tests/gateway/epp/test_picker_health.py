"""The picker's health service: what kubelet, Envoy and gateway controllers ask before they send it anything."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from tests.gateway.wire.test_tls import make_pair
from tests.support.gateway_setup import RunGateway, Setup

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
pytest.importorskip("grpc", reason="grpcio, a client for this test, is not installed")
import grpc

from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.epp.picker_listener import PROCESSOR, PickerListener, PickerSettings

SERVING, NOT_SERVING = pb.HealthCheckResponse.SERVING, pb.HealthCheckResponse.NOT_SERVING


def test_it_serves_while_a_replica_is_up_and_lives_while_it_drains(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        listener = PickerListener(setup.gateway, PickerSettings("127.0.0.1:0"))
        await listener.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                pb.HealthCheckRequest.SerializeToString,
                pb.HealthCheckResponse.FromString,
            )

            async def status(service: str) -> int:
                return int((await check(pb.HealthCheckRequest(service=service))).status)

            for name in ("readiness", PROCESSOR):
                assert await status(name) == SERVING
            setup.gateway.site.is_leaving = True
            for name in ("readiness", PROCESSOR):
                assert await status(name) == NOT_SERVING
            for name in ("", "liveness"):
                assert await status(name) == SERVING
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await status("another")
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        await listener.stop()

    run_gateway(scenario)


def test_a_picker_that_stands_by_is_not_ready_and_lives(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert setup.gateway.site.is_ready
        setup.dispatcher.served_queues.may_serve = lambda: False
        assert not setup.gateway.site.is_ready, "which is what `readiness` says"
        refused = await setup.ask()
        assert (refused.status, refused.reason) == (503, "standby")
        assert int(refused.headers["retry-after"]) in (1, 2)
        assert (await setup.get("/health")).status == 200

    run_gateway(scenario)


def test_an_address_in_use_is_one_sentence(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        taken = PickerListener(setup.gateway, PickerSettings(f"127.0.0.1:{setup.port}"))
        with pytest.raises(OSError, match=f"cannot listen on grpc-listen '127.0.0.1:{setup.port}'"):
            await taken.start()

    run_gateway(scenario)


def test_a_client_that_speaks_tls_is_served_and_one_that_does_not_is_not(
    run_gateway: RunGateway, tmp_path: Path
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    pair = make_pair(tmp_path)

    async def scenario(setup: Setup) -> None:
        listener = PickerListener(setup.gateway, PickerSettings("127.0.0.1:0", speaks_tls=True))
        await listener.start()
        target = f"127.0.0.1:{listener.port}"

        async def ask(channel: grpc.aio.Channel) -> None:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=20)

        def trusting() -> grpc.aio.Channel:
            certificate = Path(pair["tls_certificate"]).read_bytes()
            return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(certificate))

        first = Path(pair["tls_certificate"]).read_bytes()
        async with trusting() as channel:
            await ask(channel)
        async with grpc.aio.insecure_channel(target) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await ask(channel)
        make_pair(tmp_path)  # renewed, and read again
        setup.gateway.reload(setup.gateway.settings)
        await asyncio.sleep(1.5)
        assert Path(pair["tls_certificate"]).read_bytes() != first
        async with trusting() as channel:
            await ask(channel)
        await listener.stop()

    run_gateway(scenario, **pair)
