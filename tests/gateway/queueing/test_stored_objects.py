"""What one replica keeps is asked of that replica."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import pytest

from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.stored_objects import StoredObjects, makes_object, may_be_repeated, named_object
from headway.gateway.settings import QueueSettings
from headway.gateway.wire.messages import HttpRequest
from tests.support.gateway_setup import QUICK, RunGateway, Setup
from tests.support.scripted_replica import Call, Script, answers, dies_at_once

FREQUENT = replace(QUICK, models_seconds=0.05)


def request(method: str, path: str, **fields: object) -> HttpRequest:
    return HttpRequest(method.encode(), path.encode(), [], json.dumps(fields).encode() if fields else b"")


def test_what_a_request_is_about() -> None:
    assert named_object(request("GET", "/v1/files/file-1/content?x=1")) == "file-1"
    assert named_object(request("POST", "/v1/responses", previous_response_id="resp_1")) == "resp_1"
    assert named_object(request("POST", "/v1/batches", input_file_id="file-1")) == "file-1"
    assert named_object(request("POST", "/v1/responses", previous_response_id=5, conversation="c")) == "c"
    assert named_object(request("POST", "/v1/responses", input="x")) is None
    assert named_object(request("POST", "/v1/chat/completions", previous_response_id="x")) is None
    assert makes_object(request("POST", "/v1/files"))
    assert not makes_object(request("GET", "/v1/files"))
    assert not makes_object(request("POST", "/v1/responses/r/cancel"))


@pytest.mark.parametrize(
    ("method", "path", "may"),
    [
        ("POST", "/v1/completions", True),
        ("POST", "/v1/responses", True),
        ("POST", "/v1/embeddings", True),
        ("POST", "/v1/audio/transcriptions", True),
        ("POST", "/v1/batches", False),
        ("POST", "/v1/files", False),
        ("POST", "/v1/uploads/u/parts", False),
        ("POST", "/v1/conversations/c/items", False),
        ("GET", "/v1/batches", True),
        ("DELETE", "/v1/files/f", True),
        ("POST", "/v1/load_lora_adapter", False),  # only its operator knows, who lets it through
    ],
)
def test_what_may_be_executed_twice(method: str, path: str, may: bool) -> None:
    assert may_be_repeated(request(method, path), endpoint_of(path)) is may


def test_what_would_be_made_twice_is_sent_once(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        for one in setup.replicas:
            one.usual = answers(200, {"id": "batch_1"})
        for _ in range(4):
            assert (await setup.ask({"model": "m", "input_file_id": "f"}, "/v1/batches")).status == 200
        assert sum(one.connections for one in setup.replicas) == 4, "a kept connection may close with it"

        for path, broken, status, executed in (
            ("/v1/batches", dies_at_once, 502, 1),
            ("/v1/batches", answers(500, {}), 500, 1),
            ("/v1/batches", answers(503, {}), 200, 2),  # it was not executed there
            ("/v1/embeddings", dies_at_once, 200, 2),
        ):
            calls: list[Call] = []

            async def breaks_first(call: Call, calls: list[Call] = calls, broken: Script = broken) -> None:
                calls.append(call)
                await (broken if len(calls) == 1 else answers(200, {"id": "batch_2"}))(call)

            for one in setup.replicas:
                one.usual = breaks_first
            answer = await setup.ask({"model": "m", "input": "x"}, path)
            assert (answer.status, len(calls)) == (status, executed), path

    run_gateway(scenario, replicas=2)


def test_the_latest_objects_are_remembered() -> None:
    stored = StoredObjects()
    for number in range(5):
        stored.note(b'{"id": "o%d"}' % number, f"r{number}", most=3)
    stored.note(b"no object", "r9", most=3)
    stored.note(b'event: response.created\ndata: {"response":{"id":"o9"}}', "r9", most=3)
    assert [stored.made_by(f"o{number}") for number in (0, 1, 2, 3, 4, 9)] == [None, None, None, "r3", "r4", "r9"]


def test_a_follow_up_goes_to_the_replica_that_made_it_even_if_that_is_busier(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        def keeps(number: int):  # type: ignore[no-untyped-def]
            async def script(call: Call) -> None:
                if call.method == "POST" and call.json()["input"] == "long":
                    await gate.wait()
                await call.whole(200, {"id": f"resp_{number}"})

            return script

        for number, replica in enumerate(setup.replicas):
            replica.usual = keeps(number)
        first = await setup.ask({"model": "m", "input": "x"}, "/v1/responses")
        home = setup.replicas[int(first.json()["id"][-1])]
        follow_up = {"model": "m", "input": "x", "previous_response_id": first.json()["id"]}
        long = [asyncio.ensure_future(setup.ask({**follow_up, "input": "long"}, "/v1/responses")) for _ in range(3)]
        await setup.until(lambda: home.inside == 3)
        assert (await setup.ask(follow_up, "/v1/responses")).json() == first.json()
        assert (await setup.get(f"/v1/responses/{first.json()['id']}")).json() == first.json()
        gate.set()
        await asyncio.gather(*long)
        assert sum(len(replica.calls) for replica in setup.replicas) == len(home.calls) == 6

    run_gateway(scenario, replicas=2, queue=QueueSettings(stored_objects=10))


def test_a_follow_up_for_a_model_that_its_home_lacks_goes_to_a_replica_that_has_it(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        home, other = setup.replicas
        home.models, other.models = ("big",), ("small",)
        home.usual, other.usual = answers(200, {"id": "resp_1"}), answers(404, {"error": {"message": "no resp_1"}})
        await setup.until(lambda: [list(one.state.models or ()) for one in setup.dispatcher.replicas][1] == ["small"])
        assert (await setup.ask({"model": "big", "input": "x"}, "/v1/responses")).json() == {"id": "resp_1"}
        follow_up = {"model": "small", "input": "x", "previous_response_id": "resp_1"}
        assert (await setup.ask(follow_up, "/v1/responses")).status == 404
        assert len(other.calls) == 1

    run_gateway(scenario, replicas=2, queue=QueueSettings(timeout_seconds=2.0), health=FREQUENT)


def test_a_follow_up_waits_for_its_home_beside_the_queue_of_the_others(run_gateway: RunGateway) -> None:
    """Its home is full: all behind it are served elsewhere, and it gets its home's next seat within eight others."""

    async def scenario(setup: Setup) -> None:
        gates = [asyncio.Event() for _ in setup.replicas]
        served: list[str] = []

        def waits(number: int):  # type: ignore[no-untyped-def]
            async def script(call: Call) -> None:
                served.append(str(call.json()["input"]))
                if call.json()["input"] == "long":
                    await gates[number].wait()
                await call.whole(200, {"id": f"resp_{number}"})

            return script

        for number, replica in enumerate(setup.replicas):
            replica.usual = waits(number)
        first = (await setup.ask({"model": "m", "input": "first"}, "/v1/responses")).json()["id"]
        home = int(first[-1])
        plain = {"model": "m", "input": "plain"}
        full = [asyncio.ensure_future(setup.ask({**plain, "input": "long"}, "/v1/responses")) for _ in range(2)]
        await setup.until(lambda: all(replica.inside for replica in setup.replicas))
        follow_up = {"model": "m", "input": "follow-up", "previous_response_id": first}
        waiting = [asyncio.ensure_future(setup.ask(follow_up, "/v1/responses")) for _ in range(2)]
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 2)
        others = [asyncio.ensure_future(setup.ask(plain, "/v1/responses")) for _ in range(20)]
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 22)
        state = (await setup.get("/headway/state")).json()
        assert {line["kind"]: line["waiting"] for line in state["lines"]} == {
            "generation": 20,
            f"generation at r{home}": 2,
        }
        gates[1 - home].set()  # the other replica alone serves on
        assert {answer.status for answer in await asyncio.gather(*others)} == {200}
        assert served.count("follow-up") == 0
        gates[home].set()
        assert {answer.json()["id"] for answer in await asyncio.gather(*waiting)} == {first}
        await asyncio.gather(*full)

        # And it does not starve where its home serves others too.
        for gate in gates:
            gate.clear()
        served.clear()
        full = [asyncio.ensure_future(setup.ask({**plain, "input": "long"}, "/v1/responses")) for _ in range(2)]
        await setup.until(lambda: all(replica.inside for replica in setup.replicas))
        others = [asyncio.ensure_future(setup.ask(plain, "/v1/responses")) for _ in range(30)]
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 30)
        waiting = [asyncio.ensure_future(setup.ask(follow_up, "/v1/responses"))]
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 31)
        gates[home].set()
        await asyncio.gather(*others, *waiting)
        assert served.index("follow-up") <= 2 + 9
        gates[1 - home].set()
        await asyncio.gather(*full)

    run_gateway(scenario, replicas=2, seats=1)


def test_a_follow_up_whose_home_is_gone_goes_to_another_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        gate = asyncio.Event()

        async def waits(call: Call) -> None:
            if call.method == "POST" and call.json().get("input") == "long":
                await gate.wait()
            await call.whole(200, {"id": "resp_1"})

        for replica in setup.replicas:
            replica.usual = waits
        await setup.ask({"model": "m", "input": "x"}, "/v1/responses")
        home = next(replica for replica in setup.replicas if replica.calls)
        long = {"model": "m", "input": "long", "previous_response_id": "resp_1"}
        full = asyncio.ensure_future(setup.ask(long, "/v1/responses"))
        await setup.until(lambda: home.inside == 1)
        waiting = asyncio.ensure_future(setup.ask({**long, "input": "x"}, "/v1/responses"))
        await setup.until(lambda: sum(map(len, setup.dispatcher.queues.values())) == 1)
        await home.stop()
        gate.set()
        assert (await waiting).status == 200
        await full

    run_gateway(scenario, replicas=2, seats=1)
