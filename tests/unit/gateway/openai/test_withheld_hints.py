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


FORM = {b"content-type": b"multipart/form-data; boundary=bound"}
END = b"--bound--\r\n"


def field(name: bytes, value: bytes) -> bytes:
    return b"--bound\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (name, value)


FILE = field(b'name="file"; filename="a.wav"', b"RIFF" + bytes(2_000_000))
FORMS = {
    "quoted": field(b'name="priority"', b"-100"),
    "bare": field(b"name=priority", b"-100"),
    "odd blanks and letters": field(b'NAME =  "priority"', b"-100"),
    "escaped": field(rb'name="prior\ity"', b"-100"),
    "extended": field(b"name*=UTF-8''%70riority", b"-100"),
    "twice in a part": field(b'name="x"; name="priority"', b"-100"),
    "a part's second line": field(b'name="x"\r\ncontent-disposition: form-data; name="priority"', b"-100"),
    "with a type": field(b'name="priority"\r\nContent-Type: application/json', b"-100"),
    "no number": field(b'name="priority"', b"high"),
}


@pytest.mark.parametrize("part", FORMS.values(), ids=FORMS.keys())
def test_a_priority_in_a_form_does_not_pass_without_the_right(part: bytes) -> None:
    for before, after in ((b"", b""), (FILE, b""), (b"", FILE), (FILE, FILE)):
        sent = passed_on(before + part + after + END, path="/v1/audio/transcriptions", headers=FORM).body
        assert sent == before + part.replace(b"-100", b"0").replace(b"high", b"0") + after + END


def test_hints_in_a_form_are_withheld_as_in_json() -> None:
    arguments = field(b'name="vllm_xargs"', b'{"headway_rank":-1,"own":1}')
    hints = field(b'name="nvext"', b'{"agent_hints":{"priority":9,"other":1}}')
    sent = passed_on(arguments + hints + FILE + END, path="/v1/audio/transcriptions", headers=FORM).body
    assert sent == (
        field(b'name="vllm_xargs"', b'{"own":1}') + field(b'name="nvext"', b'{"agent_hints":{"other":1}}') + FILE + END
    )
    allowed = {**FORM, b"x-request-priority": b"-3"}
    given = field(b'name="priority"', b"-3") + END
    assert passed_on(given, "priority", path="/v1/audio/transcriptions", headers=allowed).body == given


@pytest.mark.parametrize(
    "content",
    [
        field(b'name="priority"', b"0") + END,
        field(b'name="x"', b"name=priority") + FILE + END,
        field(b'name="my_priority"', b"-100") + END,
        field(b'name="vllm_xargs"', b'{"own":1}') + END,
        b"--bound",
        b"--bound\r\n\r\n",
        b"--bound" * 50_000,
        b"",
    ],
)
def test_a_form_that_asks_for_nothing_keeps_its_bytes(content: bytes) -> None:
    assert passed_on(content, path="/v1/audio/transcriptions", headers=FORM).body == content
