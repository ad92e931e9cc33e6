"""JSON Web Tokens through a whole gateway: their issuer changes its keys, or is down, and no output shows a token."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

import pytest

from headway.gateway.process import _reload
from headway.gateway.settings import JwtSettings, TenantSettings
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.signed_tokens_setup import AUDIENCE, EC_KEY, ISSUER, OTHER_EC_KEY, public, token

TENANTS = (TenantSettings("a", jwt_values=("team-a",)),)


class Issuer:
    """An issuer's server that answers with what it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.keys = [public(EC_KEY, kid="e")]
        self.paths: list[str] = []

    async def start(self) -> str:
        self.server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self.server.sockets[0].getsockname()[1]}/realm/keys?p=1"

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.paths.append(head.split(b" ")[1].decode())
        body = json.dumps({"keys": self.keys}).encode()
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (self.status, len(body), body))
        writer.close()


def test_keys_change_at_the_issuer_and_it_may_be_down(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    old, new, false = token(), token(OTHER_EC_KEY, kid="o"), token(OTHER_EC_KEY)
    told: list[str] = []

    async def scenario(setup: Setup) -> None:
        issuer = Issuer()
        chosen = JwtSettings(ISSUER, AUDIENCE, await issuer.start(), unknown_key_seconds=0.001)

        async def status(given: bytes) -> int:
            answer = await setup.ask(headers=f"authorization: Bearer {given.decode()}\r\n")
            told.append(str(answer))
            assert given.decode() not in str(setup.replicas[0].calls[-1].headers if setup.replicas[0].calls else "")
            return answer.status

        changed = replace(setup.settings, jwt=chosen, tenant=TENANTS)
        await _reload(setup.gateway, lambda: changed, [])
        assert issuer.paths == ["/realm/keys?p=1"]
        assert [await status(one) for one in (old, false, b"no-token")] == [200, 401, 401]
        issuer.status = 500
        assert await status(new) == 503
        await setup.until(lambda: len(issuer.paths) > 1)
        assert await status(old) == 200, "the last good set counts"
        issuer.status, issuer.keys = 200, [public(OTHER_EC_KEY, kid="o")]
        async with asyncio.timeout(30):
            while await status(new) != 200:
                await asyncio.sleep(0.1)
        assert await status(old) in (401, 503)
        told.extend([str(await setup.get(path)) for path in ("/metrics", "/headway/state")])
        issuer.server.close()

    with caplog.at_level(logging.DEBUG):
        run_gateway(scenario)
    told.extend(str(record.__dict__) for record in caplog.records)
    assert any("answered with status 500" in text for text in told)
    for secret in (old, new, false):
        parts = secret.decode().split(".")
        assert not [text for text in told if parts[1] in text or parts[2] in text]
