"""What a key does not allow reaches no replica, however it is written; what it allows keeps its bytes."""

from __future__ import annotations

import json

import pytest

from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.endpoints import endpoint_of
from headway.gateway.openai.request_body import read_body
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import HttpRequest


def passed_on(
    content: bytes, *may: str, path: str = "/v1/completions", headers: dict[bytes, bytes] | None = None
) -> HttpRequest:
    tenant = TenantSettings(name="a", key_env="KEY", may=may, priority_min=-5)
    http = HttpRequest(b"POST", path.encode(), list((headers or {}).items()), content)
    body = read_body(content, endpoint_of(path))
    withhold(http, body, tenant, read_hints(http, body, tenant).priority)
    return http


SPELLINGS = [
    b'{"model":"m","priority":-100}',
    b'{"model":"m","priority":"-100"}',
    b'{"model":"m","priority":-100.0}',
    rb'{"model":"m","priorit\u0079":-100}',
    b'{"priority":0,"model":"m","priority":-100}',
    b'{"model":"m","priority":true}',
    b'{"model":"m","priority":-1e2}',
    b'{"model":"m","priority":"high"}',
    b'{"model":"m","priority":-%b}' % (b"9" * 400),
]


@pytest.mark.parametrize("content", SPELLINGS)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/responses"])
def test_a_priority_in_any_spelling_does_not_pass_without_the_right(content: bytes, path: str) -> None:
    assert json.loads(passed_on(content, path=path).body)["priority"] == 0


def test_a_priority_does_not_pass_where_another_field_cannot_be_read() -> None:
    content = b'{"model":5,"n":"x","priority":-100,"vllm_xargs":{"headway_rank":-1,"own":1}}'
    sent = json.loads(passed_on(content, path="/v1/responses").body)
    assert (sent["priority"], sent["vllm_xargs"]) == (0, {"own": 1})


def test_a_priority_passes_within_the_limits_of_its_key() -> None:
    assert passed_on(b'{"priority" : -3}', "priority").body == b'{"priority" : -3}'
    assert json.loads(passed_on(b'{"priority":-9}', "priority").body) == {"priority": -5}
    headers = {b"x-request-priority": b"-9", b"x_dynamo_request_priority": b"9", b"x-odd": b"1"}
    assert passed_on(b"{}", "priority", headers=headers).headers == [(b"x-odd", b"1")]
    assert passed_on(b"{}", "priority", headers={b"x-request-priority": b"-4"}).headers
    assert not passed_on(b"{}", headers={b"x-request-priority": b"-4"}).headers


def test_hints_of_agents_pass_as_far_as_the_key_allows() -> None:
    content = json.dumps({"nvext": {"agent_hints": {"priority": 9, "osl": 5, "other": 1}, "more": 2}}).encode()
    assert json.loads(passed_on(content).body)["nvext"] == {"agent_hints": {"other": 1}, "more": 2}
    kept = json.loads(passed_on(content, "priority", "output-tokens").body)["nvext"]["agent_hints"]
    assert kept == {"priority": 5, "osl": 5, "other": 1}


@pytest.mark.parametrize("content", [b"", b"\x00binary", b"[1]", b'{"prompt":"priority"}', b'{"priority":0}'])
def test_what_asks_for_nothing_keeps_its_bytes(content: bytes) -> None:
    assert passed_on(content, path="/v1/responses").body == content


@pytest.mark.parametrize("odd", [b"1e4000", b"9" * 400, b'{"a":[]}'])
def test_a_value_that_no_float_holds_hides_nothing_beside_it(odd: bytes) -> None:
    content = b'{"vllm_xargs":{"headway_rank":-1,"own":%b},"nvext":{"own":%b,"agent_hints":{"priority":9,"own":%b}}}'
    content %= (odd, odd, odd)
    expected = b'{"vllm_xargs":{"own":%b},"nvext":{"own":%b,"agent_hints":{"own":%b}}}' % (odd, odd, odd)
    assert passed_on(content).body == expected
