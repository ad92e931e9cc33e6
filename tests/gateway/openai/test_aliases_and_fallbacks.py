"""Aliases and fallbacks: the replica gets the name it knows, the client hears where its request went."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.openai.endpoints import CHAT
from headway.gateway.openai.large_body import _model_in, written_in_parts
from headway.gateway.openai.model_name import URLENCODED_BYTES, named_model
from headway.gateway.openai.request_body import decoded, read_body
from headway.gateway.openai.written_model import write_model
from headway.gateway.settings import ModelSettings
from headway.gateway.wire.messages import HttpRequest
from tests.gateway.openai.test_named_models import BODIES
from tests.support.gateway_setup import QUICK, RunGateway, Setup, completion
from tests.support.scripted_replica import answers, streams, waits_for

ALIASES = {"gpt-4": "gpt", "gpt": "m"}
FREQUENT = replace(QUICK, models_seconds=0.05)
DOWN = ("/v1/models", "/health")


def test_an_alias_reaches_the_replica_as_its_model(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        for body in (
            completion(model="gpt-4"),
            completion(model="gpt-4", prompt="x" * 300_000),
            {"prompt": "x" * 300_000, "model": "gpt-4", "stream": True},
        ):
            answer = await setup.ask(body)
            assert (answer.status, answer.headers["x-headway-model"]) == (200, "m")
            assert replica.calls[-1].json() == {**body, "model": "m", "stream_options": {"include_usage": True}}
        assert "x-headway-model" not in (await setup.ask()).headers
        listed = {model["id"]: model for model in (await setup.get("/v1/models")).json()["data"]}
        assert list(listed) == ["m", "gpt-4", "gpt"]
        assert (await setup.get("/v1/models/gpt-4")).json() == listed["gpt-4"] == {**listed["m"], "id": "gpt-4"}
        assert [key.model for key in setup.dispatcher.queues] == ["m"]
        unknown = await setup.ask(completion(model="old"))
        assert (unknown.status, unknown.reason) == (404, "unknown-model")
        sentence = "no replica serves the model 'gone', asked for as 'old'; GET /v1/models lists the models"
        assert unknown.json()["error"]["message"] == sentence

    run_gateway(scenario, aliases={**ALIASES, "old": "gone"})


@pytest.mark.parametrize(("kind", "content"), BODIES.values(), ids=BODIES.keys())
def test_an_alias_is_written_into_whatever_names_it(kind: bytes, content: bytes) -> None:
    request = HttpRequest(b"POST", b"/v1/audio/transcriptions", [(b"content-type", kind)], content)
    write_model(request, "large/v3")
    assert named_model(request, read_body(request.body)) == "large/v3"
    before, after = content.split(b"whisper"), request.body.replace(b"large%2Fv3", b"large/v3").split(b"large/v3")
    if b"json" not in kind and kind:
        assert before == after, "all else keeps its bytes"


def test_of_an_urlencoded_body_what_is_read_is_written_and_no_more() -> None:
    kind = b"application/x-www-form-urlencoded"
    rest = b"&" * URLENCODED_BYTES + b"&model=a"
    request = HttpRequest(b"POST", b"/v1/x", [(b"content-type", kind)], b"mod%65l=a&model=b&a=model=c&models=d" + rest)
    write_model(request, "m")
    assert request.body == b"model=m&model=m&a=model=c&models=d" + rest


NAMES = st.sampled_from(["m", "an alias", 'quo"ted', "größe", "a/b"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["model", "x"]), inner, max_size=2),
    max_leaves=6,
)


@given(
    st.lists(st.tuples(st.sampled_from(["messages", "user", "tools"]), VALUES), max_size=3, unique_by=lambda f: f[0]),
    NAMES,
    st.integers(0, 3),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.sampled_from(["", " ", "\n"]),
)
def test_one_field_of_a_large_body_is_written_whatever_stands_around_it(
    others: list[tuple[str, object]], asked: str, place: int, as_ascii: bool, indent: int | None, end: str
) -> None:
    fields = [*others[:place], ("model", asked), *others[place:]]
    content = (json.dumps(dict(fields), ensure_ascii=as_ascii, indent=indent) + end).encode()
    body = decoded(content, CHAT)
    body.rename("the model")
    for more in ({}, {"stream_options": {"include_usage": True}}, {"priority": 3, "vllm_xargs": {"a": 1}}):
        parts = written_in_parts(content, body, {"model": "the model", **more}, asked)
        assert json.loads(b"".join(parts)) == {**dict(fields), "model": "the model", **more}


def test_at_either_end_of_a_body_the_field_is_found_without_a_look_at_the_rest() -> None:
    long = b'"messages":"' + b"x" * 1_000_000 + b'"'
    for content in (b'{"model":"a",' + long + b"}", b"{" + long + b',"model" : "a","tools":[{"model":"a"}]}'):
        at = _model_in(content, "a")
        assert at is not None
        assert content[at[0] : at[1]] == b'"a"'
    nested = b"{" + long + b',"x":{"model":"a"}}'
    assert _model_in(nested, "a") is None


def test_a_fallback_is_asked_while_no_healthy_replica_serves_the_model(
    run_gateway: RunGateway, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(setup: Setup) -> None:
        first, second = setup.replicas
        first.models, second.models = ("big",), ("small",)
        first.usual = second.usual = answers()
        await setup.until(
            lambda: [list(one.state.models or ()) for one in setup.dispatcher.replicas] == [["big"], ["small"]]
        )
        answer = await setup.ask(completion(model="alias"))
        assert (answer.headers["x-headway-model"], len(first.calls)) == ("big", 1)
        setup.dispatcher.replicas[0].is_drained = True
        assert setup.dispatcher.model_choice.choose("alias") == "small", "a drained replica serves nothing new"
        setup.dispatcher.replicas[0].is_drained = False
        first.instead = dict.fromkeys(DOWN, answers(500, {}))
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        for name in ("alias", "big"):
            answer = await setup.ask(completion(model=name))
            assert (answer.status, answer.headers["x-headway-model"]) == (200, "small")
            assert second.calls[-1].json()["model"] == "small"
        text = (await setup.get("/metrics")).body.decode()
        assert 'headway_fallbacks_total{model_name="big",fallback="small"} 3' in text
        assert [record.getMessage() for record in caplog.records].count(
            "requests for big go to small: no healthy replica serves it"
        ) == 1
        second.instead = first.instead
        await setup.until(lambda: not setup.dispatcher.replicas[1].is_up)
        refused = await setup.ask(completion(model="big"))
        assert (refused.status, refused.reason) == (503, "no-replica")

    models = {"big": ModelSettings(fallbacks=("none", "small"))}
    with caplog.at_level(logging.WARNING, "headway.gateway"):
        health = replace(FREQUENT, no_replica_seconds=0.3)
        run_gateway(scenario, replicas=2, health=health, aliases={"alias": "big"}, models=models)


def test_a_fallback_with_a_shorter_queue_is_asked_where_a_threshold_says_so(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        (replica,) = setup.replicas
        replica.models = ("big", "small")
        await setup.until(lambda: "big" in (setup.dispatcher.replicas[0].state.models or {}))
        gate = asyncio.Event()
        replica.usual = waits_for(gate, streams())
        asking = [asyncio.ensure_future(setup.ask(completion(model="big"))) for _ in range(2)]
        await setup.until(lambda: setup.dispatcher.counts.inside == 2)
        choice, (queue,) = setup.dispatcher.model_choice, setup.dispatcher.queues.values()
        for seconds, chosen in ((None, "big"), (5.0, "big"), (5.1, "small")):
            queue.drain_seconds = lambda seconds=seconds: seconds
            assert choice.choose("big") == chosen
        del queue.drain_seconds
        gate.set()
        await asyncio.gather(*asking)

    models = {"big": ModelSettings(fallbacks=("small",), fallback_wait_seconds=5.0)}
    run_gateway(scenario, seats=1, health=FREQUENT, models=models)
