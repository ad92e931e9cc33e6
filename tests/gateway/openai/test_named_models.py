"""The model that a body names decides where it goes, in whatever form; a list that is old is asked for again."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from headway.gateway.openai.model_name import named_model
from headway.gateway.openai.request_body import read_body
from headway.gateway.wire.messages import HttpRequest
from tests.support.gateway_setup import QUICK, RunGateway, Setup
from tests.support.scripted_replica import answers

FORM = b"multipart/form-data; boundary=bound"
FILE = (
    b'--bound\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF' + bytes(3_000_000) + b"\r\n"
)
MODEL = b'--bound\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
END = b"--bound--\r\n"
FREQUENT = replace(QUICK, models_seconds=0.05)
BODIES = {
    "a form": (FORM, MODEL + FILE + END),
    "a form, the file first": (FORM, FILE + MODEL + END),
    "a form, quoted boundary": (b'Multipart/Form-Data; charset=x; boundary="bound"', FILE + MODEL + END),
    "a form, no quotes": (FORM, MODEL.replace(b'"model"', b"model") + END),
    "a form, with a type": (FORM, MODEL.replace(b"\r\n\r\n", b"\r\nContent-Type: text/plain\r\n\r\n") + END),
    "a form in one line": (b"application/x-www-form-urlencoded", b"a=b&model=whisper"),
    "JSON with an odd field": (b"application/json", b'{"model":"whisper","n":1.5}'),
    "JSON with another odd field": (b"application/json", b'{"stream":"perhaps","model":"whisper"}'),
    "JSON without a type": (b"", b'{"model":"whisper"}'),
}


@pytest.mark.parametrize(("kind", "content"), BODIES.values(), ids=BODIES.keys())
def test_the_model_is_read(kind: bytes, content: bytes) -> None:
    request = HttpRequest(b"POST", b"/v1/rerank", [(b"content-type", kind)], content)
    assert named_model(request, read_body(content)) == "whisper"


NAMELESS = {
    "no boundary": (b"multipart/form-data", MODEL + END),
    "another field": (FORM, MODEL.replace(b'"model"', b'"the_model"') + END),
    "the name in a value": (FORM, MODEL.replace(b'"model"', b'"a"').replace(b"whisper", b'name="model"') + END),
    "no end": (FORM, MODEL.rstrip()),
    "many parts": (FORM, b"--bound\r\n\r\n\r\n" * 1_000 + MODEL + FILE + END),
    "many fields": (b"application/x-www-form-urlencoded", b"a=b&" * 1_000 + b"model=whisper"),
    "audio": (b"application/octet-stream", b"\xff\0\xff"),
    "a model that is no text": (b"application/json", b'{"model":5}'),
    "no object": (b"application/json", b'["model"]'),
    "nothing": (b"application/json", b""),
}


@pytest.mark.parametrize(("kind", "content"), NAMELESS.values(), ids=NAMELESS.keys())
def test_a_body_may_name_no_model(kind: bytes, content: bytes) -> None:
    request = HttpRequest(b"POST", b"/v1/rerank", [(b"content-type", kind)], content)
    assert named_model(request, read_body(content) if content else None) == ""


def test_a_request_goes_to_a_replica_that_has_its_model(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[1].models = ("whisper",)
        setup.replicas[1].usual = setup.replicas[0].usual = answers(200, {})
        await setup.until(lambda: "whisper" in (setup.dispatcher.replicas[1].state.models or {}))
        for kind, content in ((FORM, MODEL + END), (b"application/json", b'{"model":"whisper","n":1.5}')):
            headers = f"content-type: {kind.decode()}\r\n"
            answer = await setup.ask(content, "/v1/audio/transcriptions", headers)
            assert answer.status == 200
        assert [len(one.calls) for one in setup.replicas] == [0, 2]
        assert setup.replicas[1].calls[0].body == MODEL + END

    run_gateway(scenario, replicas=2, health=FREQUENT)


def test_a_compressed_body_is_refused_with_a_sentence(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        content = gzip.compress(json.dumps({"model": "m", "prompt": "x"}).encode())
        for path in ("/v1/completions", "/v1/rerank"):
            answer = await setup.ask(content, path, "content-encoding: gzip\r\n")
            assert (answer.status, answer.reason) == (415, "malformed")
            assert "content-encoding: gzip" in answer.json()["error"]["message"]
        assert not setup.replicas[0].calls
        plain = await setup.ask(headers="content-encoding: identity\r\n")
        assert plain.status == 200

    run_gateway(scenario)


class Counted(tuple[str, ...]):
    """Models of a replica; counts how often they are listed."""

    listed = 0

    def __iter__(self) -> Iterator[str]:
        type(self).listed += 1
        return super().__iter__()


def test_a_model_that_was_loaded_a_moment_ago_is_served(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await setup.ask()).status == 200
        setup.replicas[0].models = ("m", "new")
        assert (await setup.ask({"model": "new", "prompt": "x"})).status == 200

    run_gateway(scenario)


def test_unknown_names_ask_the_replicas_at_most_once_a_second(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        Counted.listed = 0
        setup.replicas[0].models = Counted(("m",))
        asked = await asyncio.gather(*(setup.ask({"model": f"x{n}", "prompt": "x"}) for n in range(20)))
        assert {(answer.status, answer.reason) for answer in asked} == {(404, "unknown-model")}
        seconds = setup.gateway._clock() - setup.gateway._model_lists._asked_at
        assert Counted.listed <= 2 + seconds

    run_gateway(scenario)


def test_a_model_that_moved_is_found_after_one_404(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(404, {"error": {"message": "no such model"}})
        setup.replicas[0].models, setup.replicas[1].models = ("other",), ("m",)
        setup.dispatcher.replicas[1].state.models = {"other": {}}
        assert (await setup.ask({"model": "m", "prompt": "x"})).status == 404
        await setup.until(lambda: "m" in setup.dispatcher.replicas[1].state.models)
        assert (await setup.ask({"model": "m", "prompt": "x"})).status == 200

    run_gateway(scenario, replicas=2)
