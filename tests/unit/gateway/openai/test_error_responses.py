"""Error responses have OpenAI's shape and tell when to retry."""

from __future__ import annotations

import json

import pytest

from headway.gateway.openai.error_responses import Reason, error_response, retry_headers


@pytest.mark.parametrize(
    ("seconds", "after", "ms"), [(0.2, b"1", b"200"), (3.0001, b"4", b"3001"), (9e9, b"120", b"120000")]
)
def test_retry_headers(seconds: float, after: bytes, ms: bytes) -> None:
    assert retry_headers(seconds) == [(b"retry-after", after), (b"retry-after-ms", ms)]


def test_errors_have_openais_shape() -> None:
    for reason in Reason:
        error = json.loads(error_response(429, "m", reason).body)["error"]
        assert set(error) == {"message", "type", "param", "code"}
