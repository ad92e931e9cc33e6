"""Stored objects: responses, files, batches and the like, which only the replica that made them knows."""

from __future__ import annotations

import re
from collections import OrderedDict
from urllib.parse import unquote

import msgspec

from headway.gateway.openai.allowed_paths import METHODS, name_in_api
from headway.gateway.openai.endpoints import Endpoint
from headway.gateway.openai.found_fields import found_fields
from headway.gateway.wire.messages import HttpRequest

_STORING = frozenset(["batches", "conversations", "files", "responses", "uploads", "vector_stores", "videos"])
"""First name after `/v1/` of the paths whose POST makes an object."""
_PREFIXES = tuple(f"/v1/{name}" for name in _STORING)  # all other paths are left out by these alone, which is quick
_FIRST_ID = re.compile(rb'"id"\s*:\s*"([\w.:-]{1,200})"')
_ID_WITHIN_BYTES = 4_096
_IDEMPOTENT = frozenset([b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE"])
_TEXT = msgspec.json.Decoder(str)


class _Naming(msgspec.Struct):
    """Fields of a body that name an object, the first of which counts."""

    previous_response_id: msgspec.Raw = msgspec.Raw(b"")
    conversation: msgspec.Raw = msgspec.Raw(b"")
    input_file_id: msgspec.Raw = msgspec.Raw(b"")


_NAMING = msgspec.json.Decoder(_Naming)


def named_object(http: HttpRequest) -> str | None:
    """The id of the object that a request is about, in its path or its body; None without one."""
    if not http.path.startswith(_PREFIXES):
        return None
    parts = http.path.split("/")
    if parts[2] not in _STORING:
        return None
    if len(parts) > 3 and parts[3]:
        return unquote(parts[3])
    found = found_fields(http)
    if found is not None and found.json is not None:
        values = [found.json.get(name, msgspec.Raw(b"")) for name in _Naming.__struct_fields__]
    else:
        try:
            fields = _NAMING.decode(http.body) if http.body else _Naming()
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        values = [fields.previous_response_id, fields.conversation, fields.input_file_id]
    for value in values:
        try:
            return _TEXT.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    return None


def makes_object(http: HttpRequest) -> bool:
    """Whether the answer to a request is a new object."""
    return http.method == b"POST" and http.path.startswith(_PREFIXES) and http.path[len("/v1/") :] in _STORING


def may_be_repeated(http: HttpRequest, endpoint: Endpoint) -> bool:
    """Whether a request does no harm if it is executed twice: two batches of one request would be computed.

    So may those that RFC 9110 (section 9.2.2) calls idempotent, and those of the usual APIs that only compute.
    """
    if endpoint.is_generation or http.method in _IDEMPOTENT:
        return True
    name = name_in_api(http.path)
    return name in METHODS and name not in _STORING


class StoredObjects:
    """Which replica made which object: the latest ones, up to a limit."""

    def __init__(self) -> None:
        self._made_by: OrderedDict[str, str] = OrderedDict()

    def note(self, answer: bytes, replica: str, most: int) -> None:
        """An object was made: `answer` begins with it, or with the first event of it. At most `most` are kept."""
        match = _FIRST_ID.search(answer, 0, _ID_WITHIN_BYTES)
        if match is None:
            return
        self._made_by[match[1].decode()] = replica
        while len(self._made_by) > most:
            self._made_by.popitem(last=False)

    def made_by(self, object_id: str) -> str | None:
        """The name of the replica that made it, as far as it is known."""
        return self._made_by.get(object_id)
