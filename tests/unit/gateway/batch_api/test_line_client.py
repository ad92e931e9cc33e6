"""Answers in this process: kept whole or told to be too long, and a file that breaks off is cut short."""

from __future__ import annotations

import asyncio
from io import BytesIO
from typing import cast

import pytest

from headway.gateway.batch_api.awaited_answer import AwaitedAnswer
from headway.gateway.batch_api.batch_requests import RequestMistake, wanted_page
from headway.gateway.batch_api.line_client import LineAnswer, LineClient
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.wire.messages import Headers, Response


@pytest.mark.parametrize("pieces", [[b"12345", b"6"], [b"123", b"456", b"7"], [b"1", b"23456", b"7"]])
def test_an_answer_with_a_piece_left_out_is_never_taken_for_a_whole_one(pieces: list[bytes]) -> None:
    async def scenario() -> None:
        heard: list[LineAnswer] = []
        client = LineClient(cast(Dispatcher, None), 5, lambda request: None, heard.append)
        client.start(200, [], None)
        for piece in pieces[:-1]:
            client.write(piece)
        client.write_last(pieces[-1])
        client.finish()  # in the same turn
        await asyncio.sleep(0)
        assert heard == [LineAnswer(200, b"", is_too_long=True)]

    asyncio.run(scenario())


class OneClient:
    """Keeps what it is told, in order."""

    writable = True

    def __init__(self) -> None:
        self.told: list[object] = []

    def start(self, status: int, headers: Headers, length: int | None, *, more: bool = False) -> None:
        self.told.append((status, length))

    def write(self, body: bytes) -> None:
        self.told.append(body)

    def finish(self) -> None:
        self.told.append("whole")

    def abort(self) -> None:
        self.told.append("cut")

    def respond(self, response: Response) -> None:
        self.told.append(response.status)

    def break_off(self, response: Response) -> None:
        self.told.append(response.status)


def test_a_file_that_is_shorter_than_said_is_cut_and_no_error_is_written_into_it() -> None:
    async def scenario() -> None:
        client, ended = OneClient(), asyncio.Event()

        async def work(answer: AwaitedAnswer) -> None:
            try:
                await answer.send(BytesIO(b"abc"), 5, [])
            except OSError:
                answer.respond(Response(507, b"{}"))
            ended.set()

        answer = AwaitedAnswer(client, work, client.told.append)
        async with asyncio.timeout(60):
            await ended.wait()
        assert client.told == [(200, 5), b"abc", "cut"]
        answer.client_left()

    asyncio.run(scenario())


def test_a_query_with_too_many_parameters_is_a_mistake_of_its_client() -> None:
    with pytest.raises(RequestMistake, match="more than 20 parameters"):
        wanted_page(b"/v1/files?" + b"&".join(b"x%d=1" % n for n in range(21)), 20, 100, of_files=True)
