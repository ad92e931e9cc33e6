"""Which paths under /v1 a client may use."""

from __future__ import annotations

import pytest

from headway.gateway.openai.allowed_paths import why_not_allowed
from headway.gateway.openai.endpoints import ENDPOINTS


@pytest.mark.parametrize("path", [*ENDPOINTS, "/v1/responses", "/v1/chat/completions/x/messages", "/v1/audio/speech"])
def test_the_usual_paths_are_forwarded(path: str) -> None:
    assert why_not_allowed(path, b"POST", ()) is None
    assert why_not_allowed(path, b"OPTIONS", ()) is None


@pytest.mark.parametrize(
    "path", ["/v1/load_lora_adapter", "/v1/", "/v1//sleep", "/v1/%63hat/completions", "/v1/chat%2f..%2fsleep"]
)
def test_other_paths_are_not_unless_the_operator_names_them(path: str) -> None:
    status, message, _ = why_not_allowed(path, b"POST", ()) or (0, "", "")
    assert status == 404
    assert "`forward`" in message
    assert why_not_allowed("/v1/load_lora_adapter", b"PUT", ["load_lora_adapter"]) is None


def test_a_method_that_a_path_does_not_have_is_named() -> None:
    assert why_not_allowed("/v1/models/m", b"DELETE", ()) == (
        405,
        "DELETE is not forwarded to /v1/models; use GET",
        "GET",
    )
    assert why_not_allowed("/v1/completions", b"PATCH", ()) is not None
