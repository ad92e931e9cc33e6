"""Another model's name in a body that is no readable JSON object with it: in a form, or in JSON with odd fields.

What was read is written when it is sent (`relay/upstream_request.py`); a large body is then not copied. Of a large
body of any kind its fields were found before, in steps.
"""

from __future__ import annotations

from urllib.parse import quote_plus, unquote_plus

from headway.gateway.openai.form_fields import delimiter_of
from headway.gateway.openai.found_fields import form_parts_of, found_fields, replace_values
from headway.gateway.openai.model_name import URLENCODED_BYTES
from headway.gateway.openai.request_body import with_fields
from headway.gateway.wire.messages import HttpRequest


def write_model(http: HttpRequest, model: str) -> None:
    """Put the name into the fields where `named_model` finds it; the rest keeps its bytes."""
    kind = http.header(b"content-type") or b""
    delimiter, found = delimiter_of(kind), found_fields(http)
    if delimiter is not None:
        parts = [part for part in form_parts_of(http, delimiter) if b"model" in part.names]
        replace_values(http, {part.start: (part.end, model.encode()) for part in parts})
    elif kind.partition(b";")[0].strip().lower() == b"application/x-www-form-urlencoded":
        first = _urlencoded(http.body[:URLENCODED_BYTES], b"model=" + quote_plus(model).encode())
        replace_values(http, {0: (URLENCODED_BYTES, first)})
    elif found is not None:
        found.changes["model"] = model
    else:
        http.body = with_fields(http.body, {"model": model})


def _urlencoded(content: bytes, written: bytes) -> bytes:
    """What `named_model` reads of such a body is all that is taken apart: a field a byte would take seconds."""
    return b"&".join([written if _is_model(field) else field for field in content.split(b"&")])


def _is_model(field: bytes) -> bool:
    name, equals, _ = field.partition(b"=")
    return bool(equals) and unquote_plus(name.decode("latin-1")) == "model"
