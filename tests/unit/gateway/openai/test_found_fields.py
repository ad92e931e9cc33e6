"""What is found of a large body in steps is replaced as in a small one, and what would take long is refused."""

from __future__ import annotations

import json

import pytest

from headway.gateway.openai import form_fields
from headway.gateway.openai.client_hints import read_hints
from headway.gateway.openai.endpoints import CHAT, UNLISTED
from headway.gateway.openai.form_fields import HEAD_BYTES_MAX
from headway.gateway.openai.found_fields import FoundFields, found_fields
from headway.gateway.openai.large_body import LargeBody, written_in_parts
from headway.gateway.openai.model_name import URLENCODED_BYTES, named_model
from headway.gateway.openai.prompt_count import PromptCount
from headway.gateway.openai.request_body import LARGE_BYTES, Body, read_body
from headway.gateway.openai.stored_objects import named_object
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.openai.withheld_hints import withhold
from headway.gateway.openai.written_model import write_model
from headway.gateway.settings import TenantSettings
from headway.gateway.wire.messages import HttpRequest

FORM = b"multipart/form-data; boundary=bound"
END = b"--bound--\r\n"
TENANT = TenantSettings(name="a", key_env="KEY", priority_min=-5)


def part(name: bytes, value: bytes) -> bytes:
    return b'--bound\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name, value)


FILE = part(b"file", b"RIFF" + bytes(5_000) + b"\r\n--boun" + b"\r\n\r\n" * 300)
ODD = {"n": 1.5, "model": "alias", "priority": -9, "nvext": {"agent_hints": {"priority": 9}}, "z": "z" * 300}
BODIES = {
    "a form": (FORM, part(b"model", b"alias") + FILE + part(b"priority", b"-9") + END),
    "the file first": (FORM, FILE + part(b"priority", b"-9") + part(b"model", b"alias") + END),
    "fields twice": (FORM, part(b"model", b"alias") * 2 + part(b"nvext", b'{"agent_hints":{"osl":9}}') * 2 + END),
    "two names": (FORM, part(b'model"; name="priority', b"alias") + FILE + END),
    "nothing to replace": (FORM, FILE * 3 + END),
    "no end": (FORM, FILE + part(b"model", b"alias")[:-3]),
    "no parts": (FORM, b"x" * 4_000),
    "a form in one line": (b"application/x-www-form-urlencoded", b"a=b&model=alias&" + b"x" * URLENCODED_BYTES),
    "JSON with odd fields": (b"application/json", json.dumps(ODD).encode()),
    "JSON in a form's clothes": (b"application/x-www-form-urlencoded", b'{"priority":-9}'),
    "a file": (b"audio/wav", b"RIFF" + bytes(2_000)),
}


def replaced(http: HttpRequest) -> bytes:
    """The body as it is sent, to another model and with a key that allows nothing."""
    if named_model(http, None):
        write_model(http, "the model")
    withhold(http, None, TENANT, read_hints(http, None, TENANT).priority)
    found = found_fields(http)
    return http.body if found is None else b"".join(found.written(http.body))


@pytest.mark.parametrize(("kind", "content"), BODIES.values(), ids=BODIES.keys())
@pytest.mark.parametrize("pass_bytes", [1, 7, 500, 1 << 20])
def test_what_is_found_in_steps_is_replaced_as_in_a_small_body(
    monkeypatch: pytest.MonkeyPatch, kind: bytes, content: bytes, pass_bytes: int
) -> None:
    monkeypatch.setattr(form_fields, "_PASS_BYTES", pass_bytes)
    small, large = (HttpRequest(b"POST", b"/v1/x", [(b"content-type", kind)], content) for _ in range(2))
    large.fields = found = FoundFields()
    steps = sum(1 for _ in found.look(large, lambda: True))
    if kind == FORM and pass_bytes < len(content):
        assert steps >= len(content) // pass_bytes // 3, "no pass is over more than so many bytes"
    expected = replaced(small)
    sent = replaced(large)
    if b"odd" in content or content.startswith(b'{"n"'):
        assert json.loads(sent) == json.loads(expected)
    else:
        assert sent == expected
    assert large.body == content, "it is not copied"


def test_a_form_that_nothing_changes_is_not_looked_through() -> None:
    http = HttpRequest(b"POST", b"/v1/x", [(b"content-type", FORM)], FILE * 400 + END)
    found = FoundFields()
    assert list(found.look(http, lambda: False)) == []
    assert found.form is None


REFUSED = {
    "the headers of a part": (
        FORM,
        b"--bound\r\n" + b"x" * HEAD_BYTES_MAX + b"\r\n\r\n\r\n" + END,
        "headers of more than",
    ),
    "hints of a form": (FORM, part(b"nvext", b"x" * 600_000) + part(b"vllm_xargs", b"x" * 600_000) + END, "nvext hold"),
    "hints": (b"", b'{"n":1.5,"nvext":"%b"}' % (b"x" * (1 << 20)), "nvext hold more than 1,048,576 bytes"),
    "a name": (b"", b'{"n":1.5,"model":"%b"}' % (b"x" * 5_000), "the field model holds more than 4,096 bytes"),
}


@pytest.mark.parametrize(("kind", "content", "why"), REFUSED.values(), ids=REFUSED.keys())
def test_what_would_be_read_whole_and_is_long_is_refused(kind: bytes, content: bytes, why: str) -> None:
    http = HttpRequest(b"POST", b"/v1/x", [(b"content-type", kind)], content)
    with pytest.raises(ValueError, match=why):
        list(FoundFields().look(http, lambda: True))


COUNT = PromptCount({}, TokenRatio(), 700)
LONG = "x" * LARGE_BYTES


def to_m(body: Body) -> str:
    """Every name is an alias of "m"."""
    asked = body.model
    body.rename("m")
    return asked


def read(fields: object, found: FoundFields) -> LargeBody:
    large = LargeBody(json.dumps(fields).encode(), CHAT, 10**9, to_m, found)
    for _ in large.steps(COUNT):
        pass
    return large


@pytest.mark.parametrize(
    ("fields", "is_known"),
    [
        ({"messages": LONG, "model": "m"}, False),
        ({"messages": LONG, "model": "m", "stream": True}, False),
        ({"messages": LONG, "stream": True, "stream_options": {"include_usage": True}}, False),
        ({"messages": LONG, "stream": True, "stream_options": {}}, True),
        ({"messages": LONG, "priority": 1}, True),
        ({"messages": LONG, "nvext": {}}, True),
        ({"messages": LONG, "service_tier": "flex"}, True),
        ({"messages": LONG, "model": "alias", "z": LONG}, True),  # another name, in the middle
        ({"messages": LONG, "z": LONG, "model": "alias"}, False),
    ],
)
def test_all_fields_are_known_where_one_may_be_replaced_within(fields: dict[str, object], is_known: bool) -> None:
    found = FoundFields()
    large = read(fields, found)
    assert large.body is not None
    assert (found.json is not None) is is_known
    parts = written_in_parts(json.dumps(fields).encode(), large.body, {"model": "m"}, large.asked_model, found.json)
    assert json.loads(b"".join(parts)) == {**fields, "model": "m"}


@pytest.mark.parametrize(
    ("field", "value", "why"),
    [
        ("model", "x" * 5_000, "the field model holds more than 4,096 bytes"),
        ("service_tier", "x" * 5_000, "the field service_tier holds more than"),
        ("vllm_xargs", {"a": "x" * (1 << 20)}, "vllm_xargs and nvext hold more than 1,048,576 bytes"),
        ("model", 5, "`model` in the body is not valid: expected `str`, got `int`"),
    ],
)
def test_a_large_body_with_a_long_or_wrong_text_is_refused(field: str, value: object, why: str) -> None:
    large = read({"messages": LONG, field: value}, FoundFields())
    assert large.body is None
    assert large.fault is not None
    assert why in large.fault[1]


def test_values_are_counted_behind_bytes_that_are_no_text() -> None:
    content = b'{"\xff":"' + bytes(1 << 21).replace(b"\0", b"x") + b'",' + b'"a":1,' * 60_000 + b'"b":1}'
    large = LargeBody(content, UNLISTED, 2_000_000)
    for _ in large.steps(COUNT):
        pass
    assert large.fault is not None
    assert large.fault[0] == 413


def test_the_object_that_a_large_body_names_is_known_without_another_pass() -> None:
    content = json.dumps({"input": LONG, "previous_response_id": "resp_1", "n": "x"}).encode()
    assert read_body(content, UNLISTED) is None
    for fields in (None, FoundFields()):
        http = HttpRequest(b"POST", b"/v1/responses", [], content)
        http.fields = fields
        if fields is not None:
            list(fields.look(http, lambda: True))
            http.body = b""
        assert named_object(http) == "resp_1"
