"""Lines of input files: each fault has its code, and what is good is read as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.batch_api.input_lines import BATCH_ENDPOINTS, InputLine, LineFault, body_and_custom_id, judge_line
from tests.support.batch_files import CHAT_PATH, batch_line


def judged(**changes: Any) -> InputLine | LineFault:
    line = {key: value for key, value in (batch_line("a") | changes).items() if value is not ...}
    return judge_line(json.dumps(line).encode(), CHAT_PATH)


def test_the_endpoints_are_those_that_compute_whole_answers() -> None:
    assert BATCH_ENDPOINTS == ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


def test_a_good_line() -> None:
    assert judged() == InputLine(b'"a"', "a", "m")
    assert judged(body={"stream": None, "background": False}) == InputLine(b'"a"', "a", "")


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"custom_id": ...}, "missing_required_parameter", "custom_id"),
        ({"method": ...}, "missing_required_parameter", "method"),
        ({"url": ...}, "missing_required_parameter", "url"),
        ({"body": ...}, "missing_required_parameter", "body"),
        ({"custom_id": ""}, "invalid_custom_id", "custom_id"),
        ({"custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({"custom_id": None}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 2_048}, "invalid_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": "/v1/embeddings"}, "invalid_url", "url"),
        ({"url": "http://elsewhere/v1/chat/completions"}, "invalid_url", "url"),
        ({"body": "text"}, "invalid_body", "body"),
        ({"body": None}, "invalid_body", "body"),
        ({"body": {"stream": True}}, "stream_not_supported", "body.stream"),
        ({"body": {"stream": "yes"}}, "stream_not_supported", "body.stream"),
        ({"body": {"background": True}}, "background_not_supported", "body.background"),
    ],
)
def test_each_fault_has_its_code(changes: dict[str, Any], code: str, param: str) -> None:
    fault = judged(**changes)
    assert isinstance(fault, LineFault)
    assert (fault.code, fault.param) == (code, param)
    assert fault.message.endswith(".")


@pytest.mark.parametrize(
    "raw", [b"", b"x", b"[1]", b'"a"', b"{", b"[" * 100_000, b'{"custom_id": "\xff"}', b"\xef\xbb\xbf{}"]
)
def test_what_is_no_object_is_no_line(raw: bytes) -> None:
    fault = judge_line(raw, CHAT_PATH)
    assert isinstance(fault, LineFault)
    assert fault.code in ("invalid_json_line", "missing_required_parameter")


@given(st.binary(max_size=200))
def test_no_bytes_raise(raw: bytes) -> None:
    judge_line(raw, CHAT_PATH)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.text(min_size=1, max_size=100), st.dictionaries(st.text(), _JSON), st.booleans())
def test_a_good_line_is_read_as_it_was_written(name: str, body: dict[str, Any], is_ascii: bool) -> None:
    body = {key: value for key, value in body.items() if key not in ("stream", "background")}
    line = {"custom_id": name, "method": "POST", "url": CHAT_PATH, "body": body}
    raw = json.dumps(line, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    found = judge_line(raw, CHAT_PATH)
    assert isinstance(found, InputLine)
    assert found.name == name
    content, custom_id = body_and_custom_id(raw)
    assert json.loads(content) == body
    assert json.loads(custom_id) == name
