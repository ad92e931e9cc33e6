"""The model that a request names: in its JSON, or in a form's field `model`.

Rule: the name decides where the request goes, whatever else is in the body. A body that cannot be read (raw audio, JSON
that is none) names no model, and any replica may get it. A compressed body is refused, because nothing in it is seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qs

import msgspec

from headway.gateway.openai.form_fields import delimiter_of, form_parts
from headway.gateway.openai.found_fields import found_fields
from headway.gateway.openai.request_body import Body, top_level
from headway.gateway.wire.messages import HttpRequest

_FIRST_BYTES = 1 << 20
_LAST_BYTES = 1 << 16
"""Where a form's field is looked for: before and behind a file, which is not searched."""
URLENCODED_BYTES = 1 << 15
"""Of a body of that kind: its first bytes, which are decoded whole."""
_PARTS_MAX = 100
_NAME_BYTES = 1_024
_TEXT = msgspec.json.Decoder(str)


def content_coding(http: HttpRequest) -> bytes:
    """The coding of a body that cannot be read as it is; empty where there is none."""
    coding = http.named.get(b"content-encoding")
    if coding is None:
        return b""
    coding = coding.strip().lower()
    return b"" if coding == b"identity" or not http.body else coding


def named_model(http: HttpRequest, body: Body | None) -> str:
    """The model, as the request names it; "" if it names none."""
    if body is not None:
        return body.model
    if not http.body:
        return ""
    kind = http.header(b"content-type") or b""
    media_type = kind.partition(b";")[0].strip().lower()
    if media_type == b"multipart/form-data":
        delimiter = delimiter_of(kind)
        return "" if delimiter is None else _in_form(http.body, delimiter)
    if media_type == b"application/x-www-form-urlencoded":
        return _in_urlencoded(http.body)
    found = found_fields(http)
    return _in_json(top_level(http.body) if found is None or found.json is None else found.json)


def _in_json(fields: Mapping[str, msgspec.Raw]) -> str:
    try:
        return _TEXT.decode(fields.get("model", b'""'))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""


def _in_urlencoded(content: bytes) -> str:
    try:
        fields = parse_qs(content[:URLENCODED_BYTES].decode("utf-8", "replace"), max_num_fields=_PARTS_MAX)
    except ValueError:  # more fields than that
        return ""
    return fields.get("model", [""])[0]


def _in_form(content: bytes, delimiter: bytes) -> str:
    return _in_parts(content[:_FIRST_BYTES], delimiter) or _in_parts(content[-_LAST_BYTES:], delimiter)


def _in_parts(content: bytes, delimiter: bytes) -> str:
    for part in form_parts(content, delimiter, _PARTS_MAX):
        if b"model" in part.names and part.end - part.start <= _NAME_BYTES:
            return content[part.start : part.end].decode("utf-8", "replace").strip()
    return ""
