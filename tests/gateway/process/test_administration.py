"""Administration: who may change what while the gateway runs, what the change does, and that it is logged."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from headway.gateway.observing.access_log import AccessLog
from headway.gateway.settings import (
    AdminSettings,
    BudgetSettings,
    QueueSettings,
    StateSettings,
    TenantSettings,
)
from tests.support.gateway_setup import Answer, RawClient, RunGateway, Setup, completion
from tests.support.scripted_replica import hangs, streams, waits_for

ADMIN_KEY, READING_KEY, TENANT_KEY, WRONG_KEY = "key-of-alice-1", "key-that-reads-2", "key-of-team-3", "key-unknown-4"
SECRETS = (ADMIN_KEY, READING_KEY, TENANT_KEY, WRONG_KEY)
PROMPT = "a prompt that no list shows"
ADMIN = AdminSettings(key_sha256={"alice": sha256(ADMIN_KEY.encode()).hexdigest()})
TEAM = TenantSettings("team", key_sha256=sha256(TENANT_KEY.encode()).hexdigest())


async def admin(
    setup: Setup, path: str, method: str = "GET", key: str | None = ADMIN_KEY, more: str = "", port: int | None = None
) -> Answer:
    headers = f"authorization: Bearer {key}\r\n" if key is not None else ""
    async with RawClient(port or setup.gateway.addresses[-1][1]) as client:
        head = f"{method} /admin{path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{headers}{more}\r\n"
        await client.send(head.encode())
        return await client.answer()


def test_admin_is_opened_by_its_own_keys_only(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("READS", READING_KEY)

    async def scenario(setup: Setup) -> None:
        for key in (None, "", READING_KEY, TENANT_KEY, WRONG_KEY):
            for path in ("/replicas", "/nonsense", ""):
                refused = await admin(setup, path, key=key)
                assert (refused.status, refused.reason) == (401, "unauthorised")
                assert refused.headers["www-authenticate"] == 'Bearer realm="headway admin"'
        assert (await admin(setup, "/replicas")).json()["replicas"][0]["name"] == "r0"
        assert (await admin(setup, "/replicas", more="origin: http://x\r\n")).status == 403
        basic = "authorization: Basic OmtleS1vZi1hbGljZS0x\r\n"  # its key, as a browser sends a password
        assert (await admin(setup, "/replicas", key=None, more=basic)).status == 401
        assert (await admin(setup, "/replicas", port=setup.port)).status == 404, "there is an admin address"
        reading = replace(setup, port=setup.gateway.addresses[1][1])
        for key in (READING_KEY, ADMIN_KEY):
            assert (await reading.get("/metrics", f"authorization: Bearer {key}\r\n")).status == 200
        setup.gateway.reload(replace(setup.settings, admin=AdminSettings()))
        assert (await admin(setup, "/replicas")).status == 404
        assert (await reading.get("/metrics", f"authorization: Bearer {ADMIN_KEY}\r\n")).status == 401

    run_gateway(scenario, admin=ADMIN, admin_listen="127.0.0.1:0", admin_key_env="READS", tenant=(TEAM,))


def test_each_mistake_has_its_answer_and_nothing_changes_by_get(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for method, path, status, allow in (
            ("GET", "/replicas/r0/drain", 405, "POST"),
            ("PUT", "/replicas/r0/drain", 405, "POST"),
            ("POST", "/replicas", 405, "GET, HEAD"),
            ("GET", "/requests/x/cancel", 405, "POST"),
            ("DELETE", "/requests", 405, "GET, HEAD"),
            ("GET", "", 404, None),
            ("GET", "/", 404, None),
            ("POST", "/replicas//drain", 404, None),
            ("POST", "/replicas/r9/drain", 404, None),
            ("POST", "/replicas/%ff%0d%0a/drain", 404, None),
            ("POST", "/requests/none/cancel", 404, None),
            ("GET", "/requests?limit=0", 400, None),
            ("GET", "/requests?limit=1001", 400, None),
            ("GET", "/requests?limit=1e9", 400, None),
            ("GET", "/requests?after=-1", 400, None),
            ("GET", "/requests?after=", 400, None),
            ("GET", "/requests?stage=asleep", 400, None),
            ("GET", "/requests?stag=queued", 400, None),
        ):
            answer = await admin(setup, path, method)
            assert (answer.status, answer.headers.get("allow")) == (status, allow), (method, path)
            assert answer.json()["error"]["message"], "one shape for all errors"
        assert not any(one["drained"] for one in (await admin(setup, "/replicas")).json()["replicas"])

    run_gateway(scenario, admin=ADMIN)


def test_a_drained_replica_gets_nothing_new_and_ends_what_it_has(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for one in setup.replicas:
            one.usual = waits_for(gate, streams())
        running = [asyncio.ensure_future(setup.ask()) for _ in range(2)]
        await setup.until(lambda: all(one.inside for one in setup.replicas))
        drained = (await admin(setup, "/replicas/r0/drain", "POST")).json()
        assert (drained["before"], drained["after"]) == ({"drained": False}, {"drained": True})
        waiting = [asyncio.ensure_future(setup.ask()) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        changed = tuple(replace(one, prefill_tokens=99) for one in setup.settings.replica)
        setup.gateway.reload(replace(setup.settings, replica=changed))
        await setup.until(lambda: setup.dispatcher.replicas[0].is_healthy)
        assert not setup.dispatcher.replicas[0].is_up, "a reload undrains nothing"
        gate.set()
        assert [(await one).status for one in [*running, *waiting]] == [200] * 4
        assert [len(one.calls) for one in setup.replicas] == [1, 3]
        assert (await setup.get("/ready")).json() == {
            "ready": True,
            "replicas_up": 1,
            "replicas_drained": 1,
            "draining": False,
        }
        assert 'headway_replica_drained{replica="r0"} 1' in (await setup.get("/metrics")).body.decode()
        assert (await setup.get("/headway/state")).json()["replicas"][0]["drained"] is True
        assert (await admin(setup, "/replicas/r1/drain", "POST")).status == 200
        setup.gateway.reload(replace(setup.settings, queue=QueueSettings(no_replica_max_requests=0)))
        assert ((await setup.ask()).reason, (await setup.get("/ready")).status) == ("no-replica", 503)
        for refused in (await setup.ask(), await setup.get("/v1/models")):
            assert "is drained (`/admin/replicas`)" in refused.json()["error"]["message"]
        await admin(setup, "/replicas/r0/undrain", "POST")
        assert (await setup.ask()).headers["x-headway-replica"] == "r0"

    with caplog.at_level(logging.INFO, logger="headway.gateway"):
        run_gateway(scenario, replicas=2, seats=1, admin=ADMIN)
    logged = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "administration"]
    assert [(line["who"], line["client"], line["path"]) for line in logged] == [
        ("alice", "127.0.0.1", f"/admin/replicas/{path}") for path in ("r0/drain", "r1/drain", "r0/undrain")
    ]
    assert logged[2]["before"] == {"drained": True}
    assert logged[2]["after"] == {"drained": False}


def test_a_waiting_request_goes_on_when_its_replica_is_undrained(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        running = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.replicas[0].inside)
        waiting = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        await admin(setup, "/replicas/r0/drain", "POST")
        gate.set()
        assert (await running).status == 200
        assert not waiting.done()
        await admin(setup, "/replicas/r0/undrain", "POST")
        assert (await waiting).status == 200

    run_gateway(scenario, seats=1, admin=ADMIN)


def test_requests_are_listed_in_pages_and_cancelled_wherever_they_stand(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = hangs
        named = [f"x-request-id: job-{n}\r\nauthorization: Bearer {TENANT_KEY}\r\n" for n in range(4)]
        asked = []
        for number, headers in enumerate(named, 1):
            body = completion(prompt=PROMPT, session="s")
            asked.append(asyncio.ensure_future(setup.ask(body, headers=headers)))
            await setup.until(lambda number=number: setup.dispatcher.counts.inside == number)
        await setup.until(lambda: setup.replicas[0].inside)
        first = await admin(setup, "/requests?limit=3")
        page = first.json()
        assert [one["id"] for one in page["requests"]] == ["job-0", "job-1", "job-2"]
        assert [one["stage"] for one in page["requests"]] == ["sent", "queued", "queued"]
        assert page["requests"][0]["replica"] == "r0"
        assert page["requests"][1]["tenant"] == "team"
        rest = await admin(setup, f"/requests?limit=3&after={page['next_after']}&stage=queued")
        assert [one["id"] for one in rest.json()["requests"]] == ["job-3"]
        assert rest.json()["next_after"] is None
        assert PROMPT not in first.body.decode() + rest.body.decode()
        for number, stages in ((2, ["queued"]), (0, ["sent"])):
            cancelled = (await admin(setup, f"/requests/job-{number}/cancel", "POST")).json()
            assert (cancelled["before"], cancelled["after"]) == ({"stages": stages}, {"cancelled": 1, "left": 0})
            answer = await asked[number]
            assert (answer.status, answer.reason) == (410, "cancelled")
            assert answer.headers["x-should-retry"] == "false"
        await setup.until(lambda: len(setup.replicas[0].calls) == 2)
        assert (await admin(setup, "/requests/job-0/cancel", "POST")).status == 404
        for number in (1, 3):
            assert (await admin(setup, f"/requests/job-{number}/cancel", "POST")).status == 200
            assert (await asked[number]).status == 410

    run_gateway(scenario, seats=1, admin=ADMIN, tenant=(TEAM,), admin_listen="127.0.0.1:0")


def test_a_stream_that_is_cancelled_ends_with_an_error_event(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def half(call: object) -> None:
            await call.head()  # type: ignore[attr-defined]
            await call.event({"choices": [{"index": 0, "text": "a"}]})  # type: ignore[attr-defined]
            await gate.wait()

        setup.replicas[0].usual = half  # type: ignore[assignment]
        asked = [asyncio.ensure_future(setup.ask(headers="x-request-id: twice/é\r\n")) for _ in range(2)]
        await setup.until(
            lambda: [str(one.request.stage) for one in setup.dispatcher.relays.values()] == ["answering"] * 2
        )
        answer = await admin(setup, "/requests/twice%2F%C3%A9/cancel", "POST")
        assert answer.json()["after"] == {"cancelled": 2, "left": 0}, "an id is the client's, and may be there twice"
        for one in asked:
            stream = await one
            assert (stream.status, '"finish_reason": "error"' in stream.body.decode()) == (200, True)
        gate.set()

    run_gateway(scenario, admin=ADMIN)


def test_a_budget_is_changed_until_the_next_reload(run_gateway: RunGateway, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(setup: Setup) -> None:
        async def patch(body: bytes, name: str = "team", length: str | None = None) -> Answer:
            head = f"PATCH /admin/tenants/{name}/budget HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ADMIN_KEY}\r\n"
            async with RawClient(setup.gateway.addresses[-1][1]) as client:
                await client.send(head.encode() + f"content-length: {length or len(body)}\r\n\r\n".encode() + body)
                return await client.answer()

        async def asked() -> int:
            return (await setup.ask(headers=f"authorization: Bearer {TENANT_KEY}\r\n")).status

        assert [await asked(), await asked()] == [200, 429]
        changed = (await patch(b'{"requests_per_day": 3}')).json()
        assert (changed["before"]["requests_per_day"], changed["after"]["requests_per_day"]) == (1, 3)
        assert changed["after"]["tokens_per_day"] == 10**9, "what was left out stays"
        assert [await asked(), await asked(), await asked()] == [200, 200, 429]
        assert (await admin(setup, "/tenants/team/budget")).json()["budget"]["requests_per_day"] == 3
        assert (await patch(b'{"requests_per_day": null}')).status == 200
        assert await asked() == 200
        for body, sentence in (
            (b"", "must be a JSON object"),
            (b"[]", "must be a JSON object"),
            (b"{}", "must be a JSON object"),
            (b"[" * 4_000, "must be a JSON object"),
            (b'{"requests_per_day": 0}', "budget.requests_per_day must be at least 1, got 0"),
            (b'{"requests_per_day": "many"}', "budget.requests_per_day must be a whole number"),
            (b'{"request_per_day": 1}', "did you mean 'requests_per_day'?"),
            (b'{"over_budget": "drop"}', "budget.over_budget must be one of 'refuse', 'wait'"),
        ):
            answer = await patch(body)
            assert (answer.status, sentence in answer.json()["error"]["message"]) == (400, True), body
        assert (await patch(b"{}", "none")).status == 404
        assert (await patch(b"", length="9999")).status == 413
        assert (await admin(setup, "/tenants/team/budget", "POST")).headers["allow"] == "GET, HEAD, PATCH"
        setup.gateway.reload(setup.settings)
        assert [await asked(), await asked()] == [200, 429], "what was used of a limit went with it"

    team = replace(TEAM, budget=BudgetSettings(requests_per_day=1, tokens_per_day=10**9))
    with caplog.at_level(logging.INFO, logger="headway.gateway"):
        run_gateway(scenario, admin=ADMIN, tenant=(team,), admin_listen="127.0.0.1:0")
    logged = [record.__dict__["fields"] for record in caplog.records if record.getMessage() == "administration"]
    assert [(line["who"], line["path"], line["after"]["requests_per_day"]) for line in logged] == [
        ("alice", "/admin/tenants/team/budget", limit) for limit in (3, None)
    ]


def test_beside_an_admin_address_the_public_one_keeps_no_body_for_admin(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(b"PATCH /admin/x HTTP/1.1\r\nhost: x\r\ncontent-length: 50000\r\n\r\n" + b"x" * 40_000)
            await asyncio.sleep(0.1)
            assert setup.gateway.body_bytes == 0
            await client.send(b"x" * 10_000)
            assert (await client.answer()).status == 404

    run_gateway(scenario, admin=ADMIN, admin_listen="127.0.0.1:0", tenant=(TEAM,))


def test_no_output_holds_a_key(run_gateway: RunGateway, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Answers, what replicas get, log, metrics, page, record and state, after each key was used rightly and wrongly."""
    told: list[str] = []

    async def scenario(setup: Setup) -> None:
        setup.dispatcher._observers.append(AccessLog())
        for key in SECRETS:
            bearer = f"authorization: Bearer {key}\r\n"
            other = f"x-api-key: {key}\r\n"
            told.extend([str(await setup.ask(headers=headers)) for headers in (bearer, other, bearer + other)])
            paths = ("/requests", "/replicas", "/none", "/requests?stage=none")
            told.extend([str(await admin(setup, path, key=key)) for path in paths])
            told.append(str(await admin(setup, "/replicas/r0/drain", "POST", key)))
            told.append(str(await admin(setup, "/replicas/r0/undrain", "POST", key)))
        inside = replace(setup, port=setup.gateway.addresses[1][1])
        told.extend([str(await inside.get(path)) for path in ("/metrics", "/headway/state", "/ready")])
        told.extend(str(vars(call)) for call in setup.replicas[0].calls)
        await setup.until(lambda: any(record.getMessage() == "requests refused" for record in caplog.records))

    files = {"record": str(tmp_path / "record.jsonl"), "state": StateSettings(str(tmp_path / "state.json"))}
    with caplog.at_level(logging.DEBUG):
        run_gateway(scenario, admin=ADMIN, tenant=(TEAM,), admin_listen="127.0.0.1:0", **files)
    told.extend(str(record.__dict__) for record in caplog.records)
    written = [file.read_text() for file in tmp_path.iterdir()]
    assert len(written) == 2
    assert [key for key in SECRETS if any(key in text for text in told + written)] == []
    assert any("alice" in text for text in told)
