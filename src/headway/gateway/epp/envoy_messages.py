"""What Envoy tells the endpoint picker: headers, endpoints that a request may go to, who answered. All have bounds."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address

from headway.gateway.epp import ext_proc_messages as pb
from headway.gateway.relay.picked_exchange import AnswerHead
from headway.gateway.wire.messages import Headers

BESIDE_BODY_MAX = 1 << 20
"""Bytes of a message beside a body: to read that many of small fields takes some 40 ms."""
FIELDS_MAX = 2_000
"""Headers of a message, and endpoints of a subset."""
DIGITS_MAX = 18
"""Of a number in a header: Python refuses to read thousands."""
_ATTRIBUTES = "envoy.filters.http.ext_proc"
_SUBSET_METADATA, _SUBSET_KEY = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
_VIA_UPSTREAM = "via_upstream"
_FAILURE_CHARACTERS_MAX = 200
_BODY_TAGS = frozenset(b"\x22\x2a")  # request_body and response_body


def bytes_beside_body(message: bytes) -> int:
    """How much of a message is no body: Envoy writes that first, after its tag and its length (a varint)."""
    if not message or message[0] not in _BODY_TAGS:
        return len(message)
    length = 0
    for place, byte in enumerate(message[1:6]):
        length |= (byte & 127) << 7 * place
        if byte < 128:
            break
    return len(message) - length


def read_headers(came: pb.HeaderMap) -> tuple[Headers, Mapping[str, bytes]]:
    """Headers as this gateway has them, `host` among them, and pseudo-headers of HTTP/2."""
    headers: Headers = []
    pseudo: dict[str, bytes] = {}
    for header in came.headers:
        name, value = header.key, header.raw_value or header.value.encode()
        if name.startswith(":"):
            pseudo[name] = value
        else:
            headers.append((name.encode("latin-1"), value))
    if ":authority" in pseudo:
        headers.append((b"host", pseudo[":authority"]))
    return headers, pseudo


def answer_head(message: pb.ProcessingRequest, *, with_all_headers: bool) -> AnswerHead:
    """The head of an answer; of its headers only the content type, unless all are wanted."""
    status, headers = 0, []
    for header in message.response_headers.headers.headers:
        name = header.key
        if name == ":status":
            text = header.raw_value or header.value.encode()
            status = int(text) if text.isdigit() and len(text) <= DIGITS_MAX else 0
        elif with_all_headers or name == "content-type":
            headers.append((name.encode("latin-1"), header.raw_value or header.value.encode()))
    failure, endpoint = _attributes_of(message)
    return AnswerHead(status, headers, failure, endpoint)


def _attributes_of(message: pb.ProcessingRequest) -> tuple[str | None, str]:
    """Why Envoy answered in place of the replica, or None; and the endpoint that it went to last, or ""."""
    if _ATTRIBUTES not in message.attributes:
        return None, ""
    fields = message.attributes[_ATTRIBUTES].fields
    details, endpoint = fields["response.code_details"].string_value, fields["upstream.address"].string_value
    return details[:_FAILURE_CHARACTERS_MAX] if details not in ("", _VIA_UPSTREAM) else None, endpoint


def allowed_endpoints(message: pb.ProcessingRequest) -> tuple[str, ...]:
    """Those that Envoy restricts the request to, sorted; () where it does not.

    A list, or a text with commas.
    """
    if _SUBSET_METADATA not in message.metadata_context.filter_metadata:
        return ()
    value = message.metadata_context.filter_metadata[_SUBSET_METADATA].fields[_SUBSET_KEY]
    named = value.list_value.values[: FIELDS_MAX + 1]
    texts = [one.string_value for one in named] or value.string_value.split(",", FIELDS_MAX)
    return tuple(sorted({text.strip() for text in texts} - {""}))


@lru_cache(maxsize=1_024)
def client_of(forwarded_for: bytes | None) -> str | None:
    """The address that Envoy added last; None where it added none."""
    text = (forwarded_for or b"").rpartition(b",")[2].strip().decode("latin-1")
    try:
        return str(ip_address(text))
    except ValueError:
        return None
