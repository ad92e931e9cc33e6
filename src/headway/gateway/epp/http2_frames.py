"""Frames of HTTP/2 (RFC 9113): their heads, their fields, and the errors that end a connection."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, section 3.4)."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEAD_BYTES = 9
PAYLOAD_MAX = 16_384
"""Bytes of a frame without its head, both ways: the least that each side must take (section 4.2)."""
WINDOW_MAX = (1 << 31) - 1
FIRST_WINDOW = 65_535
"""Bytes of either window before anything is said of it (section 6.9.2)."""

# Settings (section 6.5.2)
ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = 2, 3, 4, 5, 6

_HEAD = Struct(">IBI")
_SETTING = Struct(">HI")
_NUMBER = Struct(">I")
read_head = _HEAD.unpack_from
"""(bytes << 8 | type, flags, stream), the last with its reserved bit."""
STREAM_MASK = 0x7FFF_FFFF


class Http2Error(IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    ENHANCE_YOUR_CALM = 11


class Http2Fault(Exception):
    """The other side broke the protocol, or a bound: the connection ends with this error, and says why."""

    def __init__(self, error: Http2Error, why: str) -> None:
        super().__init__(why)
        self.error = error
        self.why = why


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return _HEAD.pack(len(payload) << 8 | kind, flags, stream) + payload


def data_head(size: int, stream: int, *, ends: bool = False) -> bytes:
    """What stands before `size` bytes of data."""
    return _HEAD.pack(size << 8, END_STREAM if ends else 0, stream)


def settings_frame(values: dict[int, int]) -> bytes:
    """Our settings."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(name, value) for name, value in values.items()))


def window_frame(stream: int, more_bytes: int) -> bytes:
    """The other side may send more: on this stream, or with 0 on the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _NUMBER.pack(more_bytes))


def reset_frame(stream: int, error: Http2Error) -> bytes:
    """The stream ends at once."""
    return frame(RST_STREAM, 0, stream, _NUMBER.pack(error))


def goaway_frame(last_stream: int, error: Http2Error, why: str = "") -> bytes:
    """The connection takes no stream after `last_stream`."""
    return frame(GOAWAY, 0, 0, _NUMBER.pack(last_stream) + _NUMBER.pack(error) + why.encode())


def without_padding(payload: bytes) -> bytes:
    """The payload of a frame with the flag PADDED. Raises Http2Fault where its padding is longer than that."""
    if not payload or payload[0] >= len(payload):
        raise Http2Fault(Http2Error.PROTOCOL_ERROR, "padding is longer than its frame")
    return payload[1 : len(payload) - payload[0]]


def header_fragment(flags: int, payload: bytes) -> bytes:
    """The part of a header block that a HEADERS frame holds; its priority is read past (section 5.3.2)."""
    if flags & PADDED:
        payload = without_padding(payload)
    if flags & HAS_PRIORITY:
        if len(payload) < 5:
            raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "a HEADERS frame is too short for its priority")
        return payload[5:]
    return payload


def read_settings_frame(payload: bytes) -> Iterator[tuple[int, int]]:
    """The other side's settings, in order. Raises Http2Fault if one may not be."""
    if len(payload) % _SETTING.size:
        raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "settings are six bytes each")
    for name, value in _SETTING.iter_unpack(payload):
        if name == INITIAL_WINDOW_SIZE and value > WINDOW_MAX:
            raise Http2Fault(Http2Error.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE is above its bound")
        if (name == ENABLE_PUSH and value > 1) or (name == MAX_FRAME_SIZE and not PAYLOAD_MAX <= value < 1 << 24):
            raise Http2Fault(Http2Error.PROTOCOL_ERROR, f"setting {name} may not be {value}")
        yield name, value


def read_number(payload: bytes) -> int:
    """The number that is all of a frame's payload. Raises Http2Fault if it is not."""
    if len(payload) != _NUMBER.size:
        raise Http2Fault(Http2Error.FRAME_SIZE_ERROR, "a frame of four bytes has another length")
    number: int = _NUMBER.unpack(payload)[0]
    return number
