"""Headers of gRPC calls over HTTP/2: those that come, by the package hpack, and the few that are sent, ready-made.

A client sends the same headers with nearly each call, which then are a few references to HPACK's table. Law: what a
block meant is remembered only until the table changes, so a remembered block means what decoding it would give.
Sources: RFC 7541 (HPACK), RFC 9113 (section 8), gRPC over HTTP/2 (its document PROTOCOL-HTTP2).
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from hpack import Decoder
from hpack.exceptions import HPACKError, OversizedHeaderListError

from headway.gateway.epp.http2_frames import (
    END_HEADERS,
    END_STREAM,
    HAS_PRIORITY,
    PADDED,
    Http2Error,
    Http2Fault,
    header_fragment,
)

HEADER_LIST_BYTES = 65_536
"""Names and values of one call, and 32 bytes for each (RFC 9113, section 6.5.2)."""
_BLOCK_BYTES_MAX = 16_384  # packed
_BLOCK_FRAMES_MAX = 32  # that one block may be spread over (CVE-2024-27316 and its like)
_REMEMBERED = 64  # blocks
_REMEMBERED_BYTES = 512  # of a block
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_UNIT_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_OF_CONNECTION = frozenset([b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"])
_PSEUDO = frozenset([b":method", b":scheme", b":authority", b":path"])
_GRPC_TYPE = re.compile(rb"application/grpc(?:[+;]|$)")
_UPPER = re.compile(rb"[A-Z]")
_UNPLAIN = re.compile(r"[^ -$&-~]")  # what would have to be percent-encoded
_MESSAGE_MAX = 120


class HeaderBlock:
    """The headers that come now, in one frame or several.

    Attributes:
        stream: of those that are not whole; 0 where there are none.
        began_at: when they began.
    """

    __slots__ = ("_ends", "_is_whole", "_number", "_parts", "_size", "began_at", "stream")

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._number = 0
        self._ends = False
        self._is_whole = False
        self.stream = 0
        self.began_at = 0.0

    def begin(self, flags: int, number: int, payload: bytes, now: float) -> None:
        """A HEADERS frame. Raises Http2Fault if it may not be."""
        if not number & 1:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, "streams of clients have odd numbers")
        if flags & (PADDED | HAS_PRIORITY):
            payload = header_fragment(flags, payload)
        self._parts, self._size, self._number, self.began_at = [payload], len(payload), number, now
        self._ends, self._is_whole = bool(flags & END_STREAM), bool(flags & END_HEADERS)
        self.stream = 0 if self._is_whole else number

    def go_on(self, flags: int, number: int, payload: bytes) -> None:
        """A CONTINUATION frame. Raises Http2Fault if it may not be, or makes the block too large."""
        if not self.stream or number != self.stream:
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, "headers go on that did not begin")
        self._parts.append(payload)
        self._size += len(payload)
        if len(self._parts) > _BLOCK_FRAMES_MAX or self._size > _BLOCK_BYTES_MAX:
            raise Http2Fault(Http2Error.ENHANCE_YOUR_CALM, f"headers above {_BLOCK_BYTES_MAX} bytes, or in many pieces")
        if flags & END_HEADERS:
            self._is_whole, self.stream = True, 0

    def whole(self) -> tuple[int, bytes, bool] | None:
        """The stream, the block, and whether the stream's client sends no more; None while more is to come."""
        if not self._is_whole:
            return None
        parts, self._parts = self._parts, []
        return self._number, parts[0] if len(parts) == 1 else b"".join(parts), self._ends


class CallHead(NamedTuple):
    """The head of one call.

    Attributes:
        path: the method that is called, /SERVICE/METHOD.
        timeout_seconds: how long its client waits; infinite if that is not said.
        is_grpc: it is a POST with the media type of gRPC.
        is_well_formed: HTTP/2 allows such headers.
    """

    path: bytes
    timeout_seconds: float
    is_grpc: bool
    is_well_formed: bool


class CallHeadReader:
    """Reads the header blocks of one connection, in their order."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=HEADER_LIST_BYTES)
        self._known: dict[bytes, CallHead] = {}

    def read(self, block: bytes) -> CallHead:
        """What a block says. Raises Http2Fault if it cannot be decoded: what follows could not be either."""
        known = self._known.get(block)
        if known is not None:
            return known
        table = self._decoder.header_table
        entries = table.dynamic_entries
        before = (table.maxsize, len(entries), entries[0] if entries else None)
        try:
            head = _head_of([(name, value) for name, value in self._decoder.decode(block, raw=True)])
        except OversizedHeaderListError:
            raise Http2Fault(Http2Error.ENHANCE_YOUR_CALM, f"headers above {HEADER_LIST_BYTES} bytes") from None
        except HPACKError as error:
            raise Http2Fault(Http2Error.COMPRESSION_ERROR, f"headers cannot be read: {error}"[:200]) from None
        if (table.maxsize, len(entries)) != before[:2] or (entries and entries[0] is not before[2]):
            self._known.clear()  # what a reference means has changed
        elif len(block) <= _REMEMBERED_BYTES:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[block] = head
        return head


def _head_of(headers: list[tuple[bytes, bytes]]) -> CallHead:
    named: dict[bytes, bytes] = {}
    is_well_formed, is_past_pseudo = True, False
    for name, value in headers:
        if name.startswith(b":"):
            is_well_formed &= name in _PSEUDO and name not in named and not is_past_pseudo
        else:
            is_past_pseudo = True
            is_well_formed &= name not in _OF_CONNECTION and not _UPPER.search(name)
        named[name] = value
    method, path = named.get(b":method", b""), named.get(b":path", b"")
    is_well_formed &= bool(method and path and b":scheme" in named) and named.get(b"te", b"trailers") == b"trailers"
    media_type = named.get(b"content-type", b"").lower()
    is_grpc = (
        method == b"POST" and media_type.startswith(b"application/grpc") and media_type[16:17] in (b"", b"+", b";")
    )
    return CallHead(path, _seconds_of(named.get(b"grpc-timeout")), is_grpc, is_well_formed)


def _seconds_of(timeout: bytes | None) -> float:
    found = _TIMEOUT.fullmatch(timeout) if timeout is not None else None
    return math.inf if found is None else int(found[1]) * _UNIT_SECONDS[found[2]]


# What is sent. No table is used for it, so its size is said to be 0, once, before the first block: whatever the other
# side's setting is, that is within it.

NO_TABLE = b"\x20"
_STATUS_200, _STATUS_415 = b"\x88", b"\x08\x03415"
_MEDIA_TYPE = b"\x0f\x10\x10application/grpc"  # content-type, the 31st name of the static table
BEGINS = _STATUS_200 + _MEDIA_TYPE
"""The head of an answer."""
NOT_GRPC = _STATUS_415
"""The whole answer to what is no call of gRPC."""


def trailers(status: int, message: str = "") -> bytes:
    """The end of an answer: gRPC's status, and why."""
    block = _literal(b"grpc-status", b"%d" % status)
    if not message:
        return block
    return block + _literal(b"grpc-message", _UNPLAIN.sub("?", message)[:_MESSAGE_MAX].encode())


def _literal(name: bytes, value: bytes) -> bytes:
    """A header that enters no table; both are shorter than 127 bytes, so that a byte holds their length."""
    return b"\x00%c%b%c%b" % (len(name), name, len(value), value)
