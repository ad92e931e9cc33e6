"""Why a request waits, as an HTTP answer: status, kind and body."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from headway.vllm_plugin.explain_endpoint import WhyEndpoint


@pytest.fixture
def endpoint() -> Iterator[WhyEndpoint]:
    """It knows one request, whose id has a space."""
    known = {"a b": {"request": "a b", "why": "it did not"}}
    endpoint = WhyEndpoint("127.0.0.1", 0, known.get)
    yield endpoint
    endpoint.close()


def get(endpoint: WhyEndpoint, path: str) -> tuple[int, Any]:
    client = HTTPConnection("127.0.0.1", endpoint.port, timeout=60)
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    assert answer.getheader("Content-Type") == "application/json"
    assert answer.getheader("Content-Length") == str(len(body))
    client.close()
    return answer.status, json.loads(body)


def message(said: str) -> dict[str, object]:
    return {"error": {"message": said, "type": "invalid_request_error", "param": None, "code": None}}


def test_each_answer(endpoint: WhyEndpoint) -> None:
    assert get(endpoint, "/headway/why?id=a%20b") == (200, {"request": "a b", "why": "it did not"})
    assert get(endpoint, "/headway/why?more=1&id=a+b&id=c")[0] == 200, "the first id counts"
    unknown = (404, message("no such request among the latest"))
    assert get(endpoint, "/headway/why?id=c") == unknown
    assert get(endpoint, "/headway/why") == unknown
    asked = "ask /headway/why?id=REQUEST_ID"
    assert get(endpoint, "/other?id=a%20b") == (404, message(f"unknown path /other: {asked}"))


def test_a_client_that_breaks_off_leaves_no_trace(endpoint: WhyEndpoint, capfd: pytest.CaptureFixture[str]) -> None:
    client = HTTPConnection("127.0.0.1", endpoint.port, timeout=60)
    client.connect()
    assert client.sock is not None
    client.sock.sendall(b"GET /headway/why?id=a")
    client.close()
    assert get(endpoint, "/headway/why?id=a%20b")[0] == 200
    assert capfd.readouterr().err == "", "neither requests nor errors are logged"


def test_once_closed_it_answers_no_more() -> None:
    endpoint = WhyEndpoint("127.0.0.1", 0, lambda request_id: {})
    port = endpoint.port
    endpoint.close()
    with pytest.raises(ConnectionError):
        HTTPConnection("127.0.0.1", port, timeout=60).request("GET", "/headway/why?id=a")
