"""An exception ends the one request that it belongs to: others go on, the books balance, and it is counted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from headway.gateway import head_refusals
from headway.gateway.queueing import model_queue, request_routing
from headway.gateway.queueing.request_state import RequestStage
from headway.gateway.relay import exchange
from headway.gateway.replicas import probing
from headway.gateway.settings import PolicySettings
from tests.support import failing_policies
from tests.support.gateway_setup import RawClient, RunGateway, Setup, completion, post
from tests.support.scripted_replica import streams, waits_for

WHOLE = {"model": "m", "prompt": "hello there"}


@pytest.fixture(autouse=True)
def first_call() -> None:
    failing_policies.calls = 0


def fails_for(marked: bytes, otherwise: Any) -> Any:
    """`otherwise`, but it raises for requests whose body holds `marked`."""

    def act(request: Any, *rest: Any) -> Any:
        if marked in request.arrived.http.body:
            raise RuntimeError("a fault of our own")
        return otherwise(request, *rest)

    return act


def test_a_request_that_cannot_be_sent_gets_500_and_frees_its_seat(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "send_request", fails_for(b"poison", exchange.send_request))

    async def scenario(setup: Setup) -> None:
        for kept in (False, True, True):  # over a new connection and over kept ones
            assert ((await setup.ask()).status == 200) or not kept
            answer = await setup.ask(completion(prompt="poison"))
            assert (answer.status, answer.reason) == (500, "internal-error")
            assert setup.dispatcher.replicas[0].ledger.requests == 0
        assert setup.dispatcher.replicas[0].is_up
        assert setup.dispatcher.replicas[0].state.failures == 0  # it is not the replica's fault
        assert setup.dispatcher.errors.by_place["dispatch"] == 3
        text = (await setup.get("/metrics")).body.decode()
        assert 'headway_internal_errors_total{place="dispatch"} 3.0' in text

    run_gateway(scenario, seats=1)


def test_a_fault_of_ours_over_a_head_is_told_as_ours(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = head_refusals.why_not_allowed

    def fails(path: str, *rest: Any) -> Any:
        if path.endswith("poison"):
            raise RuntimeError("a fault of our own")
        return judge(path, *rest)

    monkeypatch.setattr(head_refusals, "why_not_allowed", fails)

    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as bystander:
            for number in (1, 2):
                answer = await setup.ask(path="/v1/poison")
                assert (answer.status, answer.reason) == (500, "internal-error")
                assert setup.dispatcher.errors.by_place["routes"] == number
                await bystander.send(post(completion()))
                assert (await bystander.answer()).status == 200

    run_gateway(scenario)


def test_a_request_whose_refusal_fails_is_counted_out(run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a fault of our own")

    monkeypatch.setattr(exchange.Exchange, "refuse", fails)

    async def scenario(setup: Setup) -> None:
        setup.dispatcher.is_draining = True
        answer = await setup.ask()
        assert (answer.status, answer.reason) == (500, "internal-error")
        assert setup.dispatcher.counts.inside == 0

    run_gateway(scenario)


def test_a_connection_that_fails_by_a_fault_of_ours_ends_the_request(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        pool = setup.dispatcher.replicas[0].pool

        async def fails() -> None:
            raise ValueError("a fault of our own")

        monkeypatch.setattr(pool, "open", fails)
        answer = await setup.ask()
        assert (answer.status, answer.reason) == (500, "internal-error")
        assert setup.dispatcher.replicas[0].state.failures == 0

    run_gateway(scenario)


def test_a_replica_whose_probe_fails_by_a_fault_of_ours_is_not_waited_for(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        def fails(body: bytes) -> None:
            raise RuntimeError("a fault of our own")

        monkeypatch.setattr(probing, "_models", fails)
        (settings,) = setup.settings.replica
        setup.gateway.reload(replace(setup.settings, replica=(replace(settings, name="other"),)))
        (replica,) = setup.dispatcher.replicas
        await setup.until(lambda: replica.state.health == "ejected")
        assert replica.state.last_failure == "the gateway failed at its probe"
        monkeypatch.undo()
        await setup.until(lambda: replica.is_up)

    run_gateway(scenario)


def test_a_request_that_fails_from_the_queue_harms_no_bystander(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "send_request", fails_for(b"poison", exchange.send_request))

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        async with RawClient(setup.port) as bystander:
            await bystander.send(post(completion()))
            await setup.until(lambda: setup.replicas[0].inside == 1)
            poison = [asyncio.ensure_future(setup.ask(completion(prompt="poison"))) for _ in range(3)]
            good = asyncio.ensure_future(setup.ask())
            await setup.until(lambda: setup.dispatcher.counts.inside == 5)
            gate.set()
            assert (await bystander.answer()).status == 200
            await bystander.send(post(completion()))
            assert (await bystander.answer()).status == 200
        assert [answer.status for answer in await asyncio.gather(*poison)] == [500] * 3
        assert (await good).status == 200

    run_gateway(scenario, seats=1)


def test_a_fault_in_the_middle_of_an_answer_ends_that_answer_only(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = exchange.Exchange.upstream_data

    def upstream_data(self: Any, body: bytes) -> None:
        whole(self, body)
        if self.request.arrived.request_id == b"poison" and self.request.stage is RequestStage.ANSWERING:
            raise RuntimeError("a fault of our own")

    monkeypatch.setattr(exchange.Exchange, "upstream_data", upstream_data)

    async def scenario(setup: Setup) -> None:
        good, bad = await asyncio.gather(setup.ask(), setup.ask(headers="x-request-id: poison\r\n"))
        assert (good.status, good.whole) == (200, True)
        assert bad.status == 200
        assert b"internal_error" in bad.body
        assert setup.dispatcher.errors.by_place["relay"] == 1

    run_gateway(scenario, seats=4)


def test_an_observer_that_raises_harms_no_request(run_gateway: RunGateway) -> None:
    class Broken:
        def dispatched(self, *_: Any) -> None:
            raise RuntimeError("an observer")

        def ended(self, *_: Any) -> None:
            raise RuntimeError("an observer")

    async def scenario(setup: Setup) -> None:
        setup.dispatcher._observers.insert(0, Broken())
        setup.dispatcher._dispatch_observers.insert(0, Broken())
        assert [(await setup.ask()).status for _ in range(3)] == [200] * 3
        assert setup.dispatcher.errors.by_place["observing"] == 6
        text = (await setup.get("/metrics")).body.decode()
        assert 'outcome="completed",reason=""} 3.0' in text  # the observers behind it hear all

    run_gateway(scenario)


@pytest.mark.parametrize("prediction", ["histogram", "running-mean", "declared-max", "past-future"])
def test_an_output_bound_of_any_number_of_digits_is_served(run_gateway: RunGateway, prediction: str) -> None:
    async def scenario(setup: Setup) -> None:
        for digits in (1, 20, 400, 4000):
            body = b'{"model":"m","prompt":"x","stream":true,"max_tokens":' + b"9" * digits + b"}"
            assert (await setup.ask(body)).status in (200, 400)
            assert (await setup.ask()).status == 200
        assert (await setup.get("/metrics")).status == 200
        assert (await setup.get("/headway/state")).status == 200

    run_gateway(scenario, policies=PolicySettings(prediction=prediction))


@pytest.mark.parametrize("function", ["third_call_fails", "always_fails", "nonsense"])
def test_a_predictor_that_fails_costs_no_request(run_gateway: RunGateway, function: str) -> None:
    named = f"tests.support.failing_policies:{function}"
    policies = PolicySettings(prediction="external", options={"prediction": {"function": named}}, faults_max=2)

    async def scenario(setup: Setup) -> None:
        assert [(await setup.ask()).status for _ in range(6)] == [200] * 6
        faults = sum(setup.dispatcher.errors.policy_faults.values())
        assert faults == {"third_call_fails": 1, "always_fails": 2, "nonsense": 2}[function]
        queue = next(iter(setup.dispatcher.queues.values()))
        assert queue.is_replaced == (function != "third_call_fails")
        text = (await setup.get("/metrics")).body.decode()
        assert f'headway_policy_faults_total{{kind="prediction",reason="raised"}} {faults}.0' in text
        setup.gateway.reload(setup.settings)
        assert not queue.is_replaced

    run_gateway(scenario, policies=policies)


@pytest.mark.parametrize(
    ("part", "policy"),
    [
        ("ordering", failing_policies.FailingRank),
        ("ordering", failing_policies.MixedRanks),
        ("ordering", failing_policies.FailingChoice),
        ("ordering", failing_policies.FailingListener),
        ("admission", failing_policies.FailingAdmission),
        ("routing", failing_policies.FailingRouting),
        ("routing", failing_policies.StrangeRouting),
    ],
)
def test_a_policy_that_fails_costs_no_request(
    run_gateway: RunGateway, monkeypatch: pytest.MonkeyPatch, part: str, policy: Any
) -> None:
    if part == "routing":
        monkeypatch.setattr(request_routing, "build", lambda *_, **__: policy())
    else:
        chosen = model_queue.policies_of
        monkeypatch.setattr(model_queue, "policies_of", lambda settings: replace(chosen(settings), **{part: policy()}))

    async def scenario(setup: Setup) -> None:
        gates = [asyncio.Event(), asyncio.Event()]
        for gate, one in zip(gates, setup.replicas, strict=True):
            one.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(12)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 12)
        leaving = asking.pop()
        leaving.cancel()
        await setup.until(lambda: setup.dispatcher.counts.inside == 11)
        for gate in gates:
            gate.set()
        assert [answer.status for answer in await asyncio.gather(*asking)] == [200] * 11
        assert sum(setup.dispatcher.errors.policy_faults.values()) > 0
        assert {kind for kind, _ in setup.dispatcher.errors.policy_faults} == {part}

    run_gateway(scenario, replicas=2, seats=2)
