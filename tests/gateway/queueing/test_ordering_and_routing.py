"""Order and routing on the wire: the policies of the catalogue, hints, keys and honest forecasts."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from headway.gateway.settings import PolicySettings, ReplicaSettings, TenantSettings
from tests.support.gateway_setup import RunGateway, Setup, completion
from tests.support.scripted_replica import Script, answers, streams, waits_for


async def in_order(setup: Setup, prompts: list[str], **headers: str) -> list[str]:
    """Send all while one holds the only seat; the prompts in the order in which the replica gets them."""
    gate = asyncio.Event()
    setup.replicas[0].next.append(waits_for(gate, streams()))
    asking = [asyncio.ensure_future(setup.ask(completion(prompt="first")))]
    await setup.until(lambda: setup.replicas[0].inside == 1)
    for prompt in prompts:
        inside = setup.dispatcher.counts.inside
        asking.append(asyncio.ensure_future(setup.ask(completion(prompt=prompt), headers=headers.get(prompt[0], ""))))
        await setup.until(lambda: setup.dispatcher.counts.inside == inside + 1)  # noqa: B023
    gate.set()
    found = await asyncio.gather(*asking)
    assert {answer.status for answer in found} == {200}
    return [str(call.json()["prompt"])[0] for call in setup.replicas[0].calls[1:]]


@pytest.mark.parametrize(
    ("ordering", "order"),
    [
        ("fcfs", "cab"),
        ("shortest-prompt-first", "abc"),
        ("smallest-volume-first", "abc"),
        ("priced-work", "abc"),
        ("fair-share/priced-work", "abc"),
    ],
)
def test_the_order_is_the_policys(run_gateway: RunGateway, ordering: str, order: str) -> None:
    async def scenario(setup: Setup) -> None:
        prompts = ["c" * 4_000, "a" * 40, "b" * 400]
        assert "".join(await in_order(setup, prompts)) == order

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering=ordering))


def test_tenants_share(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        flood = "x-llm-d-inference-fairness-id: flood\r\n"
        calm = "x-llm-d-inference-fairness-id: calm\r\n"
        order = await in_order(setup, ["f1", "f2", "f3", "f4", "c1"], f=flood, c=calm)
        assert "".join(order) == "fcfff"  # of two tenants not served yet the earlier, then the other

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering="fair-share"))


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> tuple[TenantSettings, ...]:
    monkeypatch.setenv("KEY_A", "key-of-a-0001")
    monkeypatch.setenv("KEY_B", "key-of-b-0002")
    trusted = TenantSettings(name="a", key_env="KEY_A", may=("priority", "deadline", "session"), priority_min=-5)
    return trusted, TenantSettings(name="b", key_env="KEY_B")


A, B = "authorization: Bearer key-of-a-0001\r\n", "Authorization: bearer key-of-b-0002\r\n"


def test_a_wrong_key_is_refused_before_the_body(run_gateway: RunGateway, keys: tuple[TenantSettings, ...]) -> None:
    async def scenario(setup: Setup) -> None:
        for headers in ("", "authorization: Bearer wrong\r\n", "authorization: Basic key-of-a-0001\r\n"):
            answer = await setup.ask(headers=headers)
            assert (answer.status, answer.json()["error"]["code"]) == (401, "invalid_api_key")
        assert (await setup.get("/v1/models")).status == 401
        assert (await setup.ask(headers=A)).status == 200
        assert (await setup.get("/metrics")).status == 404
        assert (await setup.get("/headway/")).status == 404

    run_gateway(scenario, tenant=keys)


def test_a_key_of_ours_goes_no_further_and_any_other_does(
    run_gateway: RunGateway, keys: tuple[TenantSettings, ...]
) -> None:
    async def scenario(setup: Setup) -> None:
        await setup.ask(headers=A)
        setup.gateway.reload(replace(setup.settings, tenant=()))
        await setup.ask(headers="authorization: Bearer of-the-engine\r\n")
        ours, theirs = setup.replicas[0].calls
        assert "authorization" not in ours.headers
        assert theirs.headers["authorization"] == "Bearer of-the-engine"

    run_gateway(scenario, tenant=keys)


def test_hints_are_heard_of_those_who_may_and_clamped(
    run_gateway: RunGateway, keys: tuple[TenantSettings, ...]
) -> None:
    async def scenario(setup: Setup) -> None:
        setup.dispatcher.replicas[0].settings = replace(setup.dispatcher.replicas[0].settings, priority="higher-first")
        await setup.ask(completion(priority=-99), headers=A)
        await setup.ask(completion(priority=-99), headers=B)
        sent = [call.json()["priority"] for call in setup.replicas[0].calls]
        assert sent == [5, 0]

    run_gateway(scenario, tenant=keys)


def test_a_deadline_that_cannot_be_met_is_refused_early(
    run_gateway: RunGateway, keys: tuple[TenantSettings, ...]
) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask(headers=A)) for _ in range(3)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        line = next(iter(setup.dispatcher.queues.values()))
        line.forecast._work, line.forecast._seconds = 1.0, 10.0  # a tenth of a token a second has left so far
        tight = await setup.ask(headers=A + "x-llm-d-slo-ttft-ms: 500\r\n")
        assert (tight.status, tight.reason) == (429, "deadline-unmeetable")
        assert 1 <= int(tight.headers["retry-after"]) <= 120
        untrusted = asyncio.ensure_future(setup.ask(headers=B + "x-llm-d-slo-ttft-ms: 500\r\n"))
        await setup.until(lambda: setup.dispatcher.counts.inside == 4)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(untrusted, *asking)} == {200}

    run_gateway(scenario, seats=1, tenant=keys)


def test_unknown_models_are_told_so_and_known_ones_go_where_they_are(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        answer = await setup.ask(completion(model="nope"))
        assert (answer.status, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert answer.headers["x-should-retry"] == "false"
        setup.dispatcher.replicas[1].state.models = {"other": {}}
        for _ in range(3):
            assert (await setup.ask(completion(model="other"))).headers["x-headway-replica"] == "r1"
            assert (await setup.ask(completion(model="m"))).headers["x-headway-replica"] == "r0"

    run_gateway(scenario, replicas=2)


@pytest.mark.parametrize("routing", ["least-work", "power-of-two", "round-robin"])
def test_routing_spreads(run_gateway: RunGateway, routing: str) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        for one in setup.replicas:
            one.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask()) for _ in range(8)]
        await setup.until(lambda: sum(one.inside for one in setup.replicas) == 8)
        assert [one.inside for one in setup.replicas] == [4, 4]
        gate.set()
        await asyncio.gather(*asking)

    run_gateway(scenario, replicas=2, seats=4, policies=PolicySettings(ordering="fcfs", routing=routing))


def test_sessions_and_prefixes_stay_where_they_were(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        long = "system prompt " * 500
        homes = {(await setup.ask(completion(prompt=long + str(n)))).headers["x-headway-replica"] for n in range(6)}
        assert len(homes) == 1

    run_gateway(scenario, replicas=3, policies=PolicySettings(ordering="fcfs", routing="prefix-affinity"))


def test_a_prompt_goes_where_its_longest_prefix_was_confirmed(run_gateway: RunGateway) -> None:
    """Two conversations begin on two replicas; each replica counts cached tokens, and each goes back to its own."""

    def counts(prompt_tokens: int, cached_tokens: int) -> Script:
        used = {"prompt_tokens": prompt_tokens, "completion_tokens": 2}
        return answers(
            200, {"choices": [], "usage": used | {"prompt_tokens_details": {"cached_tokens": cached_tokens}}}
        )

    async def scenario(setup: Setup) -> None:
        # The first 100,000 bytes are common: what tells them apart lies behind the first 32 KiB.
        one, two = ["common " * 14_000 + mark * 20_000 for mark in "xy"]
        for replica in setup.replicas:
            replica.usual = counts(30_000, 29_000)
        gate = asyncio.Event()
        for replica in setup.replicas:
            replica.next.append(waits_for(gate, replica.usual))
        first = [asyncio.ensure_future(setup.ask(completion(prompt=prompt, max_tokens=2))) for prompt in (one, two)]
        await setup.until(lambda: [replica.inside for replica in setup.replicas] == [1, 1])
        gate.set()
        homes = [(await answer).headers["x-headway-replica"] for answer in first]
        assert len(set(homes)) == 2
        for number in range(4):
            for prompt, home in zip((one, two), homes, strict=True):
                answer = await setup.ask(completion(prompt=prompt + str(number) * 999, max_tokens=2))
                assert answer.headers["x-headway-replica"] == home
        ledgers = [replica.ledger for replica in setup.dispatcher.replicas]
        assert all(ledger.cache_as_of > 0 for ledger in ledgers)
        assert [len(ledger.confirmed) for ledger in ledgers] == [len(ledgers[0].confirmed)] * 2

    run_gateway(scenario, replicas=2, policies=PolicySettings(ordering="fcfs", routing="cached-prefix"))


@pytest.mark.parametrize(("ordering", "order"), [("fcfs", "cab"), ("shortest-prompt-first", "abc")])
def test_adapters_wait_in_one_order_with_their_base_model(run_gateway: RunGateway, ordering: str, order: str) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        listed = [{"id": "m", "parent": None}, {"id": "sql", "parent": "m"}, {"id": "chat", "parent": "m"}]
        replica.instead["/v1/models"] = answers(200, {"data": listed})
        setup.dispatcher.replicas[0].state.probe_at = 0.0
        await setup.until(lambda: setup.dispatcher.replicas[0].ledger.adapters == {"sql", "chat"})
        gate = asyncio.Event()
        replica.next.append(waits_for(gate, streams()))
        asking = [asyncio.ensure_future(setup.ask(completion(model="m")))]
        await setup.until(lambda: replica.inside == 1)
        for prompt, model in (("c" * 4_000, "sql"), ("a" * 40, "m"), ("b" * 400, "chat")):
            inside = setup.dispatcher.counts.inside
            asking.append(asyncio.ensure_future(setup.ask(completion(prompt=prompt, model=model))))
            await setup.until(lambda: setup.dispatcher.counts.inside == inside + 1)  # noqa: B023
        unknown = await setup.ask(completion(model="sqll"))
        assert (unknown.status, unknown.json()["error"]["code"]) == (404, "model_not_found")
        gate.set()
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
        assert "".join(str(call.json()["prompt"])[0] for call in replica.calls[1:]) == order
        assert [call.json()["model"] for call in replica.calls[1:]] == [
            {"a": "m", "b": "chat", "c": "sql"}[p] for p in order
        ]

    run_gateway(scenario, seats=1, policies=PolicySettings(ordering=ordering))


def test_an_adapter_stays_where_it_is_loaded(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        listed = {"data": [{"id": "m"}, *({"id": f"adapter-{n}", "parent": "m"} for n in range(6))]}
        for replica in setup.replicas:
            replica.instead["/v1/models"] = answers(200, listed)
        for replica in setup.dispatcher.replicas:
            replica.state.probe_at = 0.0
        await setup.until(lambda: all(replica.ledger.adapters for replica in setup.dispatcher.replicas))
        homes = {}
        for name in [f"adapter-{number}" for number in range(6)] * 2:
            answer = await setup.ask(completion(model=name))
            assert homes.setdefault(name, answer.headers["x-headway-replica"]) == answer.headers["x-headway-replica"]
        assert len(set(homes.values())) > 1

    routing = {"replicas_per_adapter": 1}
    policies = PolicySettings(ordering="fcfs", routing="adapter-affinity", options={"routing": routing})
    run_gateway(scenario, replicas=3, policies=policies)


def test_the_replicas_own_report_is_read_with_its_age(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        replica = setup.dispatcher.replicas[0]
        assert replica.state.report.waiting is None
        setup.replicas[0].metrics = (
            '# HELP x\nvllm:num_requests_waiting{engine="0"} 40\nvllm:num_requests_running{engine="0"} 12.0\n'
            'vllm:kv_cache_usage_perc 0.5\nvllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1\n'
        )
        setup.gateway.reload(
            replace(setup.settings, replica=(ReplicaSettings(url=setup.replicas[0].url, name="again"),))
        )
        replica = setup.dispatcher.replicas[0]
        await setup.until(lambda: replica.state.report.waiting == 40)
        assert replica.ledger.kv_tokens_max == 1_600
        assert set(replica.ages_seconds()) == {"waiting", "running", "kv_share", "kv_tokens_max"}
        assert max(replica.ages_seconds().values()) < 5
        assert replica.ledger.requests_max == 1  # 52 of others are there, and it queues

    run_gateway(scenario)


def test_kv_memory_bounds_what_is_sent(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask(completion(prompt="x" * 4_000, max_tokens=2))) for _ in range(5)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 5)
        await asyncio.sleep(0.1)
        assert setup.replicas[0].inside == 2  # 1,001 tokens and one each in 2,500
        gate.set()
        await asyncio.gather(*asking)

    async def with_memory(setup: Setup) -> None:
        setup.dispatcher.replicas[0].ledger.kv_tokens_max = 2_500
        await scenario(setup)

    run_gateway(with_memory, policies=PolicySettings(ordering="fcfs", prediction="declared-max"))


def test_a_request_that_was_sent_when_the_one_before_it_was_refused_is_not_refused(
    run_gateway: RunGateway, keys: tuple[TenantSettings, ...]
) -> None:
    """Both deadlines have passed at one sweep; the refusal of the first leaves room for the second, which runs."""

    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.dispatcher.replicas[0].ledger.kv_tokens_max = 2_500
        setup.replicas[0].usual = waits_for(gate, streams())
        prompt_tokens = (1_000, 2_000, 500)  # the second does not fit beside the first, and holds up the third
        late = A + "x-llm-d-slo-ttft-ms: 200\r\n"
        asking = []
        for number, tokens in enumerate(prompt_tokens):
            body, headers = completion(prompt="x" * (4 * tokens), max_tokens=2), late if number else A
            asking.append(asyncio.ensure_future(setup.ask(body, headers=headers)))
            await setup.until(lambda: setup.dispatcher.counts.inside == number + 1)  # noqa: B023
        refused = await asking[1]
        assert (refused.status, refused.reason) == (429, "deadline-unmeetable")
        gate.set()
        assert [(await asking[number]).status for number in (0, 2)] == [200, 200]
        assert setup.dispatcher.counts.ended == {"refused": 1, "completed": 2}

    run_gateway(scenario, tenant=keys, policies=PolicySettings(ordering="fcfs", prediction="declared-max"))


def test_an_engine_that_refuses_is_sent_less(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        replica = setup.dispatcher.replicas[0]
        before = replica.ledger.requests_max
        setup.replicas[0].next.append(answers(503, {}))
        assert (await setup.ask()).status == 503
        assert replica.ledger.requests_max < before

    run_gateway(scenario)


def test_the_recording_is_a_trace_that_compare_reads(run_gateway: RunGateway, tmp_path: Path) -> None:
    from headway.bench.traces.loading import load_trace

    path = tmp_path / "night.jsonl"

    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = streams(4)
        for number in range(5):
            await setup.ask(completion(prompt="secret words"), headers=f"x-session-id: s{number % 2}\r\n")
        await setup.ask(completion(model="nope"))

    run_gateway(scenario, record=str(path))
    text = path.read_text()
    assert "secret" not in text
    *whole, unknown = map(json.loads, text.splitlines())
    assert unknown["outcome"] == "refused"
    assert "nope" not in text, "a name that no replica has is the client's own text"
    for line in whole:
        assert (line["model"], line["outcome"]) == ("m", "completed")
        assert 0 < line["ttft_ms"] <= line["e2e_ms"]
    trace = load_trace(str(path)).trace
    assert trace.measured_ttft_seconds is not None
    assert len(trace) == 5
    assert trace.output_tokens.tolist() == [4] * 5
    assert trace.prompt_tokens.tolist() == [7] * 5
    assert trace.turn is not None
    assert trace.turn.tolist() == [0, 0, 1, 1, 2]


def test_prompts_to_compute_bound_what_is_sent_until_they_are_computed(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate, on = asyncio.Event(), asyncio.Event()

        async def prefills(call) -> None:  # type: ignore[no-untyped-def]
            await gate.wait()
            await call.head()
            await call.event({"choices": [{"text": "t"}]})
            await on.wait()
            await call.send(b"0\r\n\r\n")

        setup.replicas[0].usual = prefills
        asking = [asyncio.ensure_future(setup.ask(completion(prompt="x" * 40_000))) for _ in range(3)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 3)
        await asyncio.sleep(0.1)
        assert setup.replicas[0].inside == 1  # 10,000 tokens each, 16,384 allowed
        gate.set()
        await setup.until(lambda: setup.replicas[0].inside == 3)
        on.set()
        await asyncio.gather(*asking)

    run_gateway(scenario)


@pytest.mark.parametrize(
    ("other_path", "other_body"),
    [
        ("/v1/completions", {"model": "m1", "prompt": "hello", "stream": True}),
        ("/v1/embeddings", {"model": "m", "input": "hello"}),
    ],
    ids=["two models", "embeddings beside completions"],
)
def test_two_queues_take_turns_at_one_seat(run_gateway: RunGateway, other_path: str, other_body: object) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()
        setup.replicas[0].models = ("m", "m1")
        assert (await setup.ask({"model": "m1", "prompt": "hello", "stream": True})).status == 200  # it is known
        setup.replicas[0].calls.clear()
        setup.replicas[0].usual = waits_for(gate, streams())
        first = asyncio.ensure_future(setup.ask())
        await setup.until(lambda: setup.replicas[0].inside == 1)
        asking = []
        for body, path in ((completion(), "/v1/completions"), (other_body, other_path)):
            asking += [asyncio.ensure_future(setup.ask(body, path)) for _ in range(6)]
            await setup.until(lambda: setup.dispatcher.counts.inside == 1 + len(asking))  # noqa: B023
        gate.set()
        await asyncio.gather(first, *asking)
        order = [(call.path, b'"m1"' in call.body) for call in setup.replicas[0].calls[1:]]
        assert all(one != following for one, following in itertools.pairwise(order)), order

    run_gateway(scenario, seats=1)
