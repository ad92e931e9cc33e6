"""Lines of output and error files, as OpenAI writes them."""

from __future__ import annotations

import json
import secrets

import msgspec

_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)

EXPIRED = "batch_expired", "This request could not be executed before the completion window expired."
CANCELLED = "batch_cancelled", "This request was not executed, because the batch was cancelled."
INPUT_LOST = "input_file_lost", "This request was not executed, because the input file is gone from the disk."


def new_request_id() -> str:
    """An id of one request to a replica."""
    return f"req_{secrets.token_hex(16)}"


def answered_line(custom_id: bytes, status: int, request_id: str, body: bytes, tries: int) -> bytes:
    """A line whose request was answered, whatever the status. `custom_id` is JSON; so is `body`, or it is told.

    Above one try, the line says how many there were.
    """
    try:
        content = msgspec.json.format(body, indent=-1)
    except _UNREADABLE:
        content = b""
    if not content or b"\n" in content:
        fields = {"message": "the answer is not JSON", "type": "server_error", "param": None, "code": "answer_not_json"}
        content = json.dumps({"error": fields}).encode()
    told = b'"status_code":%d,"request_id":%b,"body":%b' % (status, json.dumps(request_id).encode(), content)
    return _line(custom_id, b"{" + told + b"}", b"null", tries)


def failed_line(custom_id: bytes, code: str, message: str, tries: int = 0) -> bytes:
    """A line whose request has no answer."""
    return _line(custom_id, b"null", json.dumps({"code": code, "message": message}).encode(), tries)


def _line(custom_id: bytes, response: bytes, error: bytes, tries: int) -> bytes:
    again = b',"tries":%d' % tries if tries > 1 else b""
    return b'{"id":"batch_req_%b","custom_id":%b,"response":%b,"error":%b%b}\n' % (
        *(secrets.token_hex(16).encode(), custom_id, response, error, again),
    )
