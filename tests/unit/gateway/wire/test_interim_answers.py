"""Interim answers (1xx) of replicas: passed over; one with a body is no HTTP, and its body never reaches a client."""

from __future__ import annotations

import pytest

from headway.gateway.wire.messages import Headers
from headway.gateway.wire.upstream_connection import UpstreamConnection
from tests.support.fake_transport import FakeTransport

WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Sink:
    def __init__(self) -> None:
        self.came: list[object] = []

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        self.came.append(status)

    def upstream_data(self, body: bytes) -> None:
        self.came.append(body)

    def upstream_end(self, body: bytes) -> None:
        self.came.append(body)

    def upstream_failed(self, why: str) -> None:
        self.came.append(why)


def answered(*packets: bytes) -> list[object]:
    connection, sink, transport = UpstreamConnection(lambda _: None, lambda _: None, 65_536), Sink(), FakeTransport()
    connection.connection_made(transport)
    connection.send(b"GET / HTTP/1.1\r\n\r\n", sink)
    for packet in packets:
        if not transport.closed:
            connection.data_received(packet)
    return sink.came


def test_interim_answers_are_passed_over() -> None:
    hints = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"
    assert answered(hints + WHOLE) == answered(hints, WHOLE) == [200, b"{}"]


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 103 X\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 199 X\r\ntransfer-encoding: x\r\n\r\nhello",
        b"HTTP/1.1 102 X\r\ncontent-length: 5\r\n\r\nhello",
    ],
    ids=["chunks", "until-closed", "length"],
)
def test_an_interim_answer_with_a_body_ends_the_answer_before_a_byte_of_it_is_passed_on(interim: bytes) -> None:
    why = "its answer is not valid HTTP/1.1: an interim answer has no body (RFC 9110, section 15.2)"
    assert answered(interim + WHOLE) == answered(interim, WHOLE) == [why]


def test_a_switch_of_protocols_behind_a_whole_answer_takes_nothing_from_it() -> None:
    switch = b"HTTP/1.1 101 X\r\nconnection: upgrade\r\nupgrade: x\r\n\r\nxyz"
    assert answered(WHOLE + switch) == answered(WHOLE, switch) == [200, b"{}"]
    assert answered(switch) == ["it switched protocols without being asked"]
