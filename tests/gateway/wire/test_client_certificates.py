"""Client certificates (mTLS): who has to show one, whose it is, and what TLS is taken."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from headway.gateway.certificate import tls_context
from headway.gateway.settings import Settings, TenantSettings, TlsSettings
from headway.gateway.wire.peer_names import peer_names
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.settings_mistakes import sentence_about

KEY = "key-of-team-c"
TEAMS = (
    TenantSettings("a", certificate_names=("CN:team-a", "DNS:unused.example.com")),
    TenantSettings("b", certificate_names=("URI:spiffe://example.com/team-b",)),
    TenantSettings("c", key_sha256=sha256(KEY.encode()).hexdigest()),
)


def make(folder: Path, name: str, alternative: str = "") -> str:
    """A key and a certificate that is its own authority, in one file."""
    file = folder / f"{name}.pem"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", f"/CN={name}"]
    more = ["-addext", f"subjectAltName={alternative}"] if alternative else []
    out = ["-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(["openssl", "req", "-x509", *kind, *more, *out], check=True, capture_output=True)
    file.write_bytes(Path(f"{file}.crt").read_bytes() + file.read_bytes())
    return str(file)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    made = {name: make(folder, name) for name in ("server", "team-a", "stranger", "team-c")}
    made["team-b"] = make(folder, "somebody", "DNS:b.example.com,URI:spiffe://example.com/team-b")
    known = b"".join(Path(f"{made[name]}.crt").read_bytes() for name in ("team-a", "team-b", "team-c"))
    (folder / "known.pem").write_bytes(known)
    (folder / "empty.pem").write_bytes(b"")
    return made | {"known": str(folder / "known.pem"), "empty": str(folder / "empty.pem")}


def settings_of(files: dict[str, str], asks: str, **more: object) -> dict[str, object]:
    tls = TlsSettings(client_certificates=asks, client_authorities=files["known"], **more)  # type: ignore[arg-type]
    return {"tls_certificate": files["server"], "tls_key": files["server"], "tls": tls}


async def tenant_of(setup: Setup, files: dict[str, str], name: str | None, headers: str = "") -> str:
    """Who a client with this certificate is, by what the gateway remembers; or the status; or that TLS failed."""
    context = ssl.create_default_context(cafile=files["server"])
    context.check_hostname = False
    if name is not None:
        context.load_cert_chain(files[name])
    try:
        async with RawClient(setup.port) as client:
            client.writer.close()
            client.reader, client.writer = await asyncio.open_connection("127.0.0.1", setup.port, ssl=context)
            await client.send(post(completion(), headers=headers))
            answer = await client.answer()
    except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
        return "no connection"
    return setup.gateway.site.history.latest(1)[0]["tenant"] if answer.status == 200 else str(answer.status)  # type: ignore[return-value]


def test_a_required_certificate_names_the_tenant_before_any_key(run_gateway: RunGateway, files: dict[str, str]) -> None:
    key = f"authorization: Bearer {KEY}\r\n"

    async def scenario(setup: Setup) -> None:
        assert await tenant_of(setup, files, "team-a") == "a"
        assert await tenant_of(setup, files, "team-a", key) == "a"
        assert await tenant_of(setup, files, "team-b", "authorization: Bearer anything-else\r\n") == "b"
        assert await tenant_of(setup, files, "team-c") == "401", "its certificate is valid and names no tenant"
        assert await tenant_of(setup, files, "team-c", key) == "c"
        for name in (None, "stranger"):
            assert await tenant_of(setup, files, name, key) == "no connection"

    run_gateway(scenario, tenant=TEAMS, **settings_of(files, "required"))


def test_an_optional_certificate_is_no_need_and_authorities_are_read_again(
    run_gateway: RunGateway, files: dict[str, str], tmp_path: Path
) -> None:
    known = tmp_path / "known.pem"
    known.write_bytes(Path(files["known"]).read_bytes())
    chosen = settings_of(files | {"known": str(known)}, "optional")

    async def scenario(setup: Setup) -> None:
        key = f"authorization: Bearer {KEY}\r\n"
        assert await tenant_of(setup, files, None, key) == "c"
        assert await tenant_of(setup, files, None) == "401"
        assert await tenant_of(setup, files, "team-a") == "a"
        known.write_bytes(Path(f"{files['team-b']}.crt").read_bytes())
        setup.gateway.reload(setup.settings)
        assert await tenant_of(setup, files, "team-a", key) == "no connection", "its authority is known no more"
        assert await tenant_of(setup, files, "team-b") == "b"
        known.write_bytes(b"")
        with pytest.raises(ValueError, match="client_authorities"):
            setup.gateway.reload(setup.settings)
        assert await tenant_of(setup, files, "team-b") == "b"

    run_gateway(scenario, tenant=TEAMS, **chosen)


def test_safe_defaults_and_what_is_chosen(files: dict[str, str]) -> None:
    plain = Settings(tls_certificate=files["server"], tls_key=files["server"])
    context = tls_context(plain)
    assert context is not None
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    own = tls_context(replace(plain, tls=TlsSettings(minimum="1.3", ciphers="ECDHE-RSA-AES256-GCM-SHA384")))
    assert own is not None
    assert own.minimum_version is ssl.TLSVersion.TLSv1_3
    suites = {cipher["name"] for cipher in own.get_ciphers() if cipher["protocol"] == "TLSv1.2"}
    assert suites == {"ECDHE-RSA-AES256-GCM-SHA384"}
    for tls, sentence in (
        (TlsSettings(ciphers="NONE-OF-THEM"), "tls.ciphers names no cipher suite"),
        (TlsSettings("required", files["empty"]), "tls.client_authorities .* cannot be used"),
        (TlsSettings("required", "missing.pem"), "tls.client_authorities .* cannot be used: No such file"),
    ):
        with pytest.raises(ValueError, match=sentence):
            tls_context(replace(plain, tls=tls))


PAIR = 'tls_certificate = "x"\ntls_key = "x"\n'
ASKS = PAIR + 'tls = {client_certificates = "optional", client_authorities = "x"}\n'
TENANT = '[[tenant]]\nname = "t"\ncertificate_names = ["CN:t"]\n'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('tls = {minimum = "1.3"}', "[tls] needs tls_certificate and tls_key"),
        (PAIR + 'tls = {minimum = "1.1"}', "tls.minimum must be one of '1.2', '1.3', got '1.1'"),
        (PAIR + 'tls = {client_certificates = "required"}', "client_authorities belong together"),
        (PAIR + 'tls = {client_authorities = "x"}', "client_authorities belong together"),
        (PAIR + TENANT, "tenant 't': certificate_names needs tls.client_certificates"),
        (ASKS + TENANT.replace("CN:t", "t"), "certificate_names must hold names like 'CN:team-a'"),
        (ASKS + TENANT.replace("CN:t", "CN:"), "certificate_names must hold names like 'CN:team-a'"),
    ],
)
def test_each_mistake_of_the_settings_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    told = sentence_about(tmp_path, text)
    assert sentence in told


def test_names_of_a_certificate() -> None:
    assert peer_names(None) == peer_names({}) == ()
    subject = ((("organizationName", "X"),), (("commonName", "one"), ("commonName", "two")))
    alternatives = (("DNS", "a.example.com"), ("IP Address", "10.0.0.1"), ("URI", "spiffe://x/y"), ("DirName", ("x",)))
    found = peer_names({"subject": subject, "subjectAltName": alternatives})
    assert found == ("DNS:a.example.com", "URI:spiffe://x/y", "CN:one", "CN:two")
    assert len(peer_names({"subjectAltName": [("DNS", str(n)) for n in range(500)]})) == 100
