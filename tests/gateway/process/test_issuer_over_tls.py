"""The key set of a live issuer over HTTPS: its keys change, and a certificate that nobody trusts counts as no set."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import subprocess
from pathlib import Path

import pytest

from headway.gateway.settings import JwtSettings
from headway.gateway.signed_tokens import KeyFault, SignedTokens
from headway.gateway.wire import upstream_pool
from tests.support.signed_tokens_setup import AUDIENCE, EC_KEY, ISSUER, OTHER_EC_KEY, RSA_KEY, public, token
from tests.unit.gateway.test_signed_tokens import Moment


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A key and its own certificate for 127.0.0.1."""
    key, pem = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1"]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", pem]
    subprocess.run([*made, *names], check=True, capture_output=True)
    return key, pem


def test_keys_change_at_an_issuer_behind_tls(
    certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    upstream_pool._trusted.cache_clear()
    keys = [public(EC_KEY, kid="e")]
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        body = json.dumps({"keys": keys}).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[1], certificate[0])
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
        url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys"
        clock = Moment(100.0)
        tokens = SignedTokens(JwtSettings(ISSUER, AUDIENCE, jwks_url=url), clock=clock)
        await tokens.ask()  # nobody trusts its certificate
        unread = tokens.value_of(token())
        assert isinstance(unread, KeyFault)
        assert (unread.status, asked) == (503, [])
        assert "certificate verify failed" in caplog.text

        monkeypatch.setenv("SSL_CERT_FILE", certificate[1])
        upstream_pool._trusted.cache_clear()  # as in another process
        await tokens.ask()
        assert tokens.value_of(token()) == "team-a"
        new = token(OTHER_EC_KEY, kid="o")
        assert isinstance(tokens.value_of(new), KeyFault)
        assert not tokens.is_due, "no sooner than after `unknown_key_seconds`"
        keys[:] = [public(OTHER_EC_KEY, kid="o"), public(RSA_KEY, kid="r")]
        clock.seconds += 31
        told = tokens.value_of(new)
        assert isinstance(told, KeyFault)
        assert (told.status, tokens.is_due) == (503, True)
        await tokens.ask()
        assert tokens.value_of(new) == "team-a"
        gone = tokens.value_of(token())
        assert isinstance(gone, KeyFault)
        assert gone.status == 401
        server.close()

    try:
        with caplog.at_level(logging.WARNING):
            asyncio.run(scenario())
    finally:
        upstream_pool._trusted.cache_clear()
    assert len(asked) == 2


pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
