"""Headers of calls: what is remembered of them is what decoding them again would give, whatever came between."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

pytest.importorskip("hpack", reason="the extra `epp` is not installed")
from hpack import Decoder, Encoder

from headway.gateway.epp import http2_headers
from headway.gateway.epp.http2_frames import Http2Error, Http2Fault
from headway.gateway.epp.http2_headers import BEGINS, NO_TABLE, NOT_GRPC, CallHead, CallHeadReader, trailers

POST = [(b":method", b"POST"), (b":scheme", b"http"), (b"content-type", b"application/grpc")]
# Blocks whose meaning hangs on the table: they add to it, change its size, and refer to its newest entries.
RAW = [
    b"\x40\x05:path\x01a",
    b"\x40\x05:path\x01b",
    b"\xbe",
    b"\xbf",
    b"\x83\x86\xbe",
    b"\x20",
    b"\x3f\xe1\x1f",
    b"\x21\xbe",
]
PATHS = some.sampled_from([b"/a", b"/b", b"/c"])
ENCODED = some.lists(some.tuples(PATHS, some.booleans(), some.sampled_from([None, 0, 64, 4_096])), max_size=30)


def outcome(reader: CallHeadReader, block: bytes) -> CallHead | Http2Error:
    try:
        return reader.read(block)
    except Http2Fault as fault:
        return fault.error


@given(some.lists(some.sampled_from(RAW), max_size=30))
def test_a_block_means_what_decoding_it_gives(blocks: list[bytes]) -> None:
    reader, plain = CallHeadReader(), Decoder(max_header_list_size=http2_headers.HEADER_LIST_BYTES)
    for block in blocks:
        found = outcome(reader, block)
        try:
            wanted = http2_headers._head_of([(one[0], one[1]) for one in plain.decode(block, raw=True)])
        except Exception:
            assert found is Http2Error.COMPRESSION_ERROR
            return
        assert found == wanted


@given(ENCODED)
def test_heads_are_read_as_they_were_encoded(calls: list[tuple[bytes, bool, int | None]]) -> None:
    encoder, reader = Encoder(), CallHeadReader()
    for path, is_sensitive, table_bytes in calls:
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        block = encoder.encode([*((*one, False) for one in POST), (b":path", path, is_sensitive)])
        assert reader.read(bytes(block)).path == path


def test_what_is_remembered_is_bounded() -> None:
    reader = CallHeadReader()
    for number in range(300):
        reader.read(b"\x83\x86\x00\x05:path\x03%03d" % number)
    reader.read(b"\x00\x01a\x7f\x81\x07" + b"v" * 1_024)
    assert len(reader._known) <= 64
    assert max(map(len, reader._known)) <= 512


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(b"10S", 10.0), (b"1M", 60.0), (b"20n", 2e-8), (b"", math.inf), (b"S", math.inf), (b"123456789S", math.inf)],
)
def test_a_timeout_is_read_or_ignored(timeout: bytes, seconds: float) -> None:
    block = Encoder().encode([*POST, (b":path", b"/a"), (b"grpc-timeout", timeout)])
    assert CallHeadReader().read(bytes(block)).timeout_seconds == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("media_type", "is_grpc"),
    [
        (b"application/grpc", True),
        (b"application/grpc+proto", True),
        (b"application/grpc;x=y", True),
        (b"application/grpc-web", False),
        (b"application/json", False),
    ],
)
def test_grpc_is_known_by_its_media_type(media_type: bytes, is_grpc: bool) -> None:
    block = Encoder().encode([*POST[:2], (b":path", b"/a"), (b"content-type", media_type)])
    assert CallHeadReader().read(bytes(block)).is_grpc is is_grpc


@pytest.mark.parametrize("message", ["", "plain, with 'signs'", "ä line\nand a % sign", "long " * 100])
def test_what_is_sent_is_read_by_others(message: str) -> None:
    decoder = Decoder()
    assert dict(decoder.decode(NO_TABLE + BEGINS, raw=True))[b"content-type"] == b"application/grpc"
    assert decoder.decode(NOT_GRPC, raw=True) == [(b":status", b"415")]
    end = dict(decoder.decode(trailers(13, message), raw=True))
    assert end[b"grpc-status"] == b"13"
    told = end.get(b"grpc-message", b"")
    assert len(told) <= 120
    assert told.decode() == "".join(sign if " " <= sign <= "~" and sign != "%" else "?" for sign in message)[:120]
    decoder.header_table_size = 0  # no table is used, so no size is too small
    assert decoder.decode(trailers(0), raw=True) == [(b"grpc-status", b"0")]
