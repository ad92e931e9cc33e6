"""What a key costs at each request, and a reload with many: `python -m benchmarks.cost.keys`.

All in one run: the look-up of a request's key with 1 tenant and with 10,000, valid and unknown; the same for a JSON Web
Token that is known already, that is new, and whose signature is wrong (extra `jwt`); whole requests that are refused
for these; then a reload of 10,000 tenants on a gateway that runs, with the longest time that its event loop had no
turn. The machine's other work lengthens that, so beside it stands the same for a thread that only counts. Processor
time of this machine; the median over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import uvloop

from headway.gateway.api_keys import ApiKeys
from headway.gateway.gateway import Gateway
from headway.gateway.gc_tuning import spare_objects_of_the_start
from headway.gateway.process import _reload
from headway.gateway.settings import (
    JwtSettings,
    ReplicaSettings,
    Settings,
    TenantSettings,
)
from headway.gateway.settings_file import read_settings
from headway.gateway.signed_tokens import SignedTokens
from headway.gateway.wire.client_connection import ClientConnection
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import Headers
from tests.support.fake_transport import FakeTransport

MANY = 10_000
ROUNDS, CALLS = 15, 2_000
TENANT = '[[tenant]]\nname = "team-{0}"\nkey_sha256 = "{1}"\n'


def main() -> None:
    one, many = (ApiKeys(tenants(number)) for number in (1, MANY))
    for name, key in (("known", b"Bearer key-0"), ("unknown", b"Bearer key-x")):
        costs = [cost_of(keys, [(b"authorization", key)]) for keys in (one, many)]
        ratio = costs[1] / costs[0]
        print(f"{name} key: {costs[0]:.2f} µs with 1 tenant, {costs[1]:.2f} µs with {MANY:,} ({ratio:.2f} times)")
    tokens()
    uvloop.run(reload())


def tenants(number: int) -> list[TenantSettings]:
    return [
        TenantSettings(f"team-{n}", key_sha256=sha256(f"key-{n}".encode()).hexdigest(), jwt_values=(f"client-{n}",))
        for n in range(number)
    ]


def cost_of(keys: ApiKeys, headers: Headers) -> float:
    named = dict(headers)
    return median_microseconds(lambda: keys.who(named), CALLS)


def median_microseconds(call: Callable[[], object], calls: int) -> float:
    spent = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        for _ in range(calls):
            call()
        spent.append((time.thread_time() - began) / calls * 1e6)
    return statistics.median(spent)


def tokens() -> None:
    """Each algorithm: a token that is known, one that is new at each call, one whose signature is wrong."""
    try:
        import jwt
        from cryptography.hazmat.primitives.asymmetric import ec, rsa
    except ImportError:
        print("tokens: not measured, the extra jwt is missing")
        return
    made = {
        "RS256": (rsa.generate_private_key(65_537, 2_048), jwt.algorithms.RSAAlgorithm),
        "ES256": (ec.generate_private_key(ec.SECP256R1()), jwt.algorithms.ECAlgorithm),
    }
    listed = [{**kind.to_jwk(key.public_key(), as_dict=True), "kid": name} for name, (key, kind) in made.items()]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "keys.json"
        file.write_text(json.dumps({"keys": listed}))
        verifier = SignedTokens(JwtSettings("issuer", "headway", jwks_file=str(file)))
    keys = ApiKeys(tenants(MANY), verifier)
    for name, (key, _) in made.items():
        claims = {"iss": "issuer", "aud": "headway", "exp": int(time.time()) + 3_600, "sub": "client-7"}
        known = jwt.encode(claims, key, name, {"kid": name}).encode()
        named = {b"authorization": b"Bearer " + known}
        assert isinstance(keys.who(named), TenantSettings)
        at_once = median_microseconds(lambda named=named: keys.who(named), CALLS)

        def forget_and_ask(named: dict[bytes, bytes] = named) -> None:
            verifier._verified.clear()
            keys.who(named)

        wrong = {b"authorization": b"Bearer " + known[:-6] + b"AAAAAA"}

        def forget_and_refuse(wrong: dict[bytes, bytes] = wrong) -> None:
            verifier._false.clear()
            keys.who(wrong)

        new, false = (median_microseconds(call, 100) for call in (forget_and_ask, forget_and_refuse))
        again = median_microseconds(lambda wrong=wrong: keys.who(wrong), CALLS)
        print(
            f"{name} token of {len(known)} bytes: {at_once:.2f} µs once known, {new:.0f} µs when new; "
            f"with a wrong signature {false:.0f} µs, then {again:.2f} µs"
        )
        asyncio.run(refused(keys, f"a {name} token with a new wrong signature", bytes(wrong[b"authorization"])))
    asyncio.run(refused(keys, "an unknown key", b"Bearer unknown"))


async def refused(keys: ApiKeys, what: str, authorization: bytes) -> None:
    """A whole request that is refused for its key, from its bytes to those of the 401; no socket is in it."""
    gateway = Gateway(Settings(replica=(ReplicaSettings("http://127.0.0.1:9"),), tenant=tenants(1)))
    gateway.api.tenants = keys
    request = b"GET /v1/models HTTP/1.1\r\nhost: x\r\nauthorization: %b\r\n\r\n" % authorization

    def ask() -> None:
        if keys.tokens is not None:
            keys.tokens._false.clear()
        client = ClientConnection(gateway.site, WireLimits(), set(), time.monotonic)
        transport = FakeTransport()
        client.connection_made(transport)
        client.data_received(request)
        assert transport.written.startswith(b"HTTP/1.1 401")
        client.connection_lost(None)

    print(f"refusal of a whole request with {what}: {median_microseconds(ask, 100):.0f} µs")
    await gateway.stop()


async def reload() -> None:
    """The longest pause of the loop while a file with many tenants is read again, and while a thread only counts."""
    spare_objects_of_the_start()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "gateway.toml"
        file.write_text(
            "".join(TENANT.format(n, sha256(f"key-{n}".encode()).hexdigest()) for n in range(MANY)), encoding="utf-8"
        )
        gateway = Gateway(
            Settings(listen="127.0.0.1:0", replica=(ReplicaSettings("http://127.0.0.1:9"),), tenant=tenants(MANY))
        )
        await gateway.start()
        began = time.perf_counter()
        reading = asyncio.create_task(
            _reload(gateway, lambda: replace(read_settings(file), replica=gateway.settings.replica), [])
        )
        pauses = await pauses_until(reading.done)
        seconds = time.perf_counter() - began
        counting_until = time.perf_counter() + seconds
        counting = asyncio.create_task(asyncio.to_thread(count_until, counting_until))
        beside_counting = await pauses_until(counting.done)
        assert gateway.settings.tenant[7].key_sha256, "it was read"
        await gateway.stop()
    print(
        f"reload of {MANY:,} tenants: {seconds:.2f} s; the event loop had no turn for {pauses[0]:.0f} ms at most "
        f"({beside_counting[0]:.0f} ms beside a thread that only counts), and computed for {pauses[1]:.0f} ms at most"
    )


def count_until(end: float) -> None:
    number = 0
    while time.perf_counter() < end:
        number += 1


async def pauses_until(is_over: Callable[[], bool]) -> tuple[float, float]:
    """The longest time without a turn of the loop, and the most that its thread computed in one; milliseconds."""
    longest, computed = 0.0, 0.0
    while not is_over():
        wall, processor = time.perf_counter(), time.thread_time()
        await asyncio.sleep(0.001)
        longest = max(longest, time.perf_counter() - wall)
        computed = max(computed, time.thread_time() - processor)
    return longest * 1e3, computed * 1e3


if __name__ == "__main__":
    main()
