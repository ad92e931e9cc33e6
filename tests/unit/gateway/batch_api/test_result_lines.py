"""Lines of result files, as OpenAI writes them: one line each, whatever the replica's answer looked like."""

from __future__ import annotations

import json

import pytest

from headway.gateway.batch_api.result_lines import EXPIRED, answered_line, failed_line


def test_an_answer_is_one_line_whatever_it_looked_like() -> None:
    text = answered_line(b'"a\\n"', 200, "req_1", b'{\n "x": [1,\r\n 2.50], "y": "\\u00e9"}\n', 1)
    assert text.count(b"\n") == 1
    assert b'"body":{"x":[1,2.50],"y":"\\u00e9"}' in text
    row = json.loads(text)
    assert list(row) == ["id", "custom_id", "response", "error"]
    assert row["custom_id"] == "a\n"
    assert row["response"] == {"status_code": 200, "request_id": "req_1", "body": {"x": [1, 2.5], "y": "é"}}


@pytest.mark.parametrize("body", [b"", b"<html>\n", b'{"a":', b'{"a": "\n"}', b"\xff"])
def test_an_answer_that_is_no_json_is_told(body: bytes) -> None:
    row = json.loads(answered_line(b'"a"', 502, "req_1", body, 2))
    assert row["response"]["status_code"] == 502
    assert row["response"]["body"]["error"]["code"] == "answer_not_json"
    assert row["tries"] == 2


def test_a_line_without_an_answer() -> None:
    row = json.loads(failed_line(b'"a"', *EXPIRED))
    assert (row["custom_id"], row["response"], row["error"]["code"]) == ("a", None, "batch_expired")
