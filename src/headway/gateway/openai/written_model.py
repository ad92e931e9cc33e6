"""Another model's name in a body that is no readable JSON object with it: in a form, or in JSON with odd fields.

What was read is written when it is sent (`relay/upstream_request.py`); a large body is then not copied.
"""

from __future__ import annotations

from urllib.parse import quote_plus, unquote_plus

from headway.gateway.openai.form_fields import delimiter_of, form_parts
from headway.gateway.openai.model_name import URLENCODED_BYTES
from headway.gateway.openai.request_body import with_fields
from headway.gateway.wire.messages import HttpRequest

_PARTS_MAX = 2_000  # of a form; engines behind Starlette take 1,000 files and 1,000 fields


def write_model(http: HttpRequest, model: str) -> None:
    """Put the name into the fields where `named_model` finds it; the rest keeps its bytes."""
    kind = http.header(b"content-type") or b""
    delimiter = delimiter_of(kind)
    if delimiter is not None:
        http.body = _in_form(http.body, delimiter, model.encode())
    elif kind.partition(b";")[0].strip().lower() == b"application/x-www-form-urlencoded":
        http.body = _in_urlencoded(http.body, b"model=" + quote_plus(model).encode())
    else:
        http.body = with_fields(http.body, {"model": model})


def _in_form(content: bytes, delimiter: bytes, model: bytes) -> bytes:
    kept: list[bytes | memoryview] = []
    at = 0
    for part in form_parts(content, delimiter, _PARTS_MAX):
        if b"model" in part.names:
            kept += [memoryview(content)[at : part.start], model]
            at = part.end
    return b"".join([*kept, memoryview(content)[at:]])


def _in_urlencoded(content: bytes, written: bytes) -> bytes:
    """Only the part that `named_model` reads is taken apart: a field a byte of a large body would take seconds."""
    fields = content[:URLENCODED_BYTES].split(b"&")
    first = b"&".join([written if _is_model(field) else field for field in fields])
    return b"".join([first, memoryview(content)[URLENCODED_BYTES:]])


def _is_model(field: bytes) -> bool:
    name, equals, _ = field.partition(b"=")
    return bool(equals) and unquote_plus(name.decode("latin-1")) == "model"
