"""Budgets of keys through a whole gateway: what clients see, what metrics and logs say, what a restart keeps."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from headway.gateway.gateway import Gateway
from headway.gateway.settings import BudgetSettings, StateSettings, TenantSettings
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion
from tests.support.scripted_replica import Call

SECRETS = {"a": "secret-of-a", "b": "secret-of-b"}
KEYS = {name: f"authorization: Bearer {secret}\r\n" for name, secret in SECRETS.items()}
USAGE = {"prompt_tokens": 40, "completion_tokens": 60}


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, secret in SECRETS.items():
        monkeypatch.setenv(f"KEY_OF_{name}", secret)


def tenants(**budgets: BudgetSettings) -> tuple[TenantSettings, ...]:
    return tuple(TenantSettings(name, key_env=f"KEY_OF_{name}", budget=budget) for name, budget in budgets.items())


async def used(call: Call) -> None:
    """An answer with 100 tokens, and with headers that an engine has no say in."""
    body = json.dumps({"choices": [], "usage": USAGE | {"input_tokens": 40, "output_tokens": 60}}).encode()
    theirs = "x-ratelimit-remaining-tokens: theirs\r\nanthropic-ratelimit-requests-limit: theirs\r\n"
    head = f"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n{theirs}content-length: {len(body)}\r\n\r\n"
    await call.send(head.encode() + body)


def test_clients_see_what_is_left_and_are_refused_before_their_body(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = used  # type: ignore[method-assign]
        body = completion(stream=False, max_tokens=100)
        first = await setup.ask(body, headers=KEYS["a"])
        assert first.status == 200
        told = {name: value for name, value in first.headers.items() if "ratelimit" in name}
        assert told["x-ratelimit-limit-requests"] == "2"
        assert told["x-ratelimit-remaining-requests"] == "1"
        assert told["x-ratelimit-reset-requests"] == "30s"
        assert told["x-ratelimit-limit-tokens"] == "100000"
        assert told["x-ratelimit-remaining-tokens"].isdecimal()
        assert len(told) == 6
        second = await setup.ask(body, path="/v1/messages", headers=KEYS["a"])
        assert second.headers["anthropic-ratelimit-requests-remaining"] == "0"
        async with RawClient(setup.port) as client:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{KEYS['a']}content-length: 9000000\r\n\r\n"
            await client.send(head.encode())
            refused = await client.answer()
        assert (refused.status, refused.reason) == (429, "over-budget")
        assert 0 < int(refused.headers["retry-after"]) <= 30
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        free = await setup.ask(body, headers=KEYS["b"])
        assert free.status == 200
        assert "ratelimit-remaining-requests" not in "".join(free.headers), "a key without a budget has none to tell"
        accounts = setup.dispatcher.budgets
        _, tokens = accounts.budgets["a"].tightest(accounts._now_us())
        assert tokens.balance(accounts._now_us()) >= 100_000 - 2 * sum(USAGE.values())
        page = setup.gateway._metrics.text().decode()
        assert 'headway_over_budget_requests_total{limit="requests_per_minute",result="refused"} 1' in page
        assert 'fairness_id="a",outcome="refused",reason="over-budget"} 1' in page
        setup.gateway._refusal_log.flush()
        assert not any(secret in page + caplog.text for secret in SECRETS.values())

    budget = BudgetSettings(requests_per_minute=2, tokens_per_day=100_000)
    run_gateway(scenario, tenant=tenants(a=budget, b=BudgetSettings()))


def test_what_was_used_is_kept_over_a_restart_and_a_reload(run_gateway: RunGateway, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    budget = BudgetSettings(requests_per_day=10, tokens_per_day=10_000)

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = used  # type: ignore[method-assign]
        assert (await setup.ask(completion(stream=False), headers=KEYS["a"])).status == 200
        setup.gateway.reload(setup.settings)
        await setup.gateway._learned.save()
        saved = path.read_text(encoding="utf-8")
        assert list(json.loads(saved)["learned"]["budgets"]) == ["a"]
        assert not any(secret in saved for secret in SECRETS.values())
        accounts = Gateway(setup.settings).dispatcher.budgets
        now_us = accounts._now_us()
        requests, tokens = accounts.budgets["a"].tightest(now_us)
        assert requests is not None
        assert tokens is not None
        assert (requests.balance(now_us), tokens.balance(now_us)) == (9, 9_900)

    run_gateway(scenario, tenant=tenants(a=budget, b=budget), state=StateSettings(path=str(path)))


def test_a_broken_part_of_the_state_file_is_one_sentence(
    run_gateway: RunGateway, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.json"
    learned = {"lines": [], "bytes_per_token": {}, "budgets": {"a": {"taken": {"tokens_per_day": "7"}, "unix_us": 1}}}
    content = {"format": "headway-state", "version": 1, "policy": "gateway", "problem": "", "trials": []}
    path.write_text(json.dumps(content | {"learned": learned}), encoding="utf-8")

    async def scenario(setup: Setup) -> None:
        assert "`taken` or `unix_us`" in caplog.text
        assert (await setup.ask(headers=KEYS["a"])).status == 200

    run_gateway(scenario, tenant=tenants(a=BudgetSettings(tokens_per_day=9_000)), state=StateSettings(path=str(path)))


def test_who_waits_beyond_a_budget_is_served_after_the_others(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        order: list[str] = []

        async def slow(call: Call) -> None:
            await setup.until(lambda: setup.dispatcher.counts.arrived == 4)
            order.append(call.json()["prompt"])
            await used(call)

        setup.replicas[0].usual = slow  # type: ignore[method-assign]
        tasks = []
        for number, (key, prompt) in enumerate((("a", "first"), ("a", "over"), ("b", "b1"), ("b", "b2"))):
            tasks.append(asyncio.create_task(setup.ask(completion(prompt=prompt, stream=False), headers=KEYS[key])))
            await setup.until(lambda number=number: setup.dispatcher.counts.arrived == number + 1)
        assert [answer.status for answer in await asyncio.gather(*tasks)] == [200] * 4
        assert order == ["first", "b1", "b2", "over"]
        page = setup.gateway._metrics.text().decode()
        assert 'headway_over_budget_requests_total{limit="requests_per_day",result="waits"} 1' in page

    budget = BudgetSettings(requests_per_day=1, over_budget="wait")
    run_gateway(scenario, seats=1, tenant=tenants(a=budget, b=BudgetSettings()))
