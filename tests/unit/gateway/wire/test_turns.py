"""Turns of the event loop: what one client sent together, and what fails, takes none from the others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from headway.gateway.wire.client_connection import ClientConnection, PendingAnswer
from headway.gateway.wire.limits import WireLimits
from headway.gateway.wire.messages import Headers, HttpRequest, Response
from headway.gateway.wire.stepped_answer import SteppedAnswer, StepsInTurn
from tests.support.fake_transport import FakeTransport

GET = b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class SlowPages:
    """Answers each request at once, which takes 4 ms; `fails` and `fails_at_head` are paths whose handling raises."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.answered: list[str] = []
        self.fails = self.fails_at_head = ""

    def bad_request(self, status: int, message: str, headers: Headers) -> Response:
        return Response(status, message.encode())

    def refuse_head(self, request: HttpRequest) -> Response | None:
        if request.path == self.fails_at_head:
            raise RuntimeError("a fault of our own")
        return None

    def shaped(self, response: Response, path: str) -> Response:
        return response

    def takes_body(self, request: HttpRequest) -> bool:
        return True

    def refused(self, response: Response, address: str) -> None: ...

    def answer(self, request: HttpRequest, client: ClientConnection) -> PendingAnswer | None:
        if request.path == self.fails:
            raise RuntimeError("a fault of our own")
        self.clock.now += 0.004
        self.answered.append(request.path)
        client.respond(Response(200, request.path.encode()))
        return None


def connected(pages: SlowPages) -> tuple[ClientConnection, FakeTransport]:
    client, transport = ClientConnection(pages, WireLimits(), set(), pages.clock), FakeTransport()
    client.connection_made(transport)
    return client, transport


def test_requests_sent_together_are_answered_in_several_turns_and_in_order() -> None:
    async def scenario() -> None:
        pages = SlowPages(Clock())
        client, transport = connected(pages)
        client.data_received(b"".join(GET % number for number in range(50)))
        turns = [len(pages.answered)]
        client.data_received(GET % 50)  # meanwhile
        while len(pages.answered) < 51:
            await asyncio.sleep(0)
            turns.append(len(pages.answered))
        most = max(later - before for before, later in zip([0, *turns], turns, strict=False))
        assert 1 <= most <= 3, "a turn is 10 ms"
        assert pages.answered == [f"/{number}" for number in range(51)]
        assert transport.written.count(b"HTTP/1.1 200 OK") == 51

    asyncio.run(scenario())


def test_a_server_that_goes_answers_what_has_its_turn_and_closes() -> None:
    async def scenario() -> None:
        pages = SlowPages(Clock())
        client, transport = connected(pages)
        client.data_received(b"".join(GET % number for number in range(50)))
        before = len(pages.answered)
        client.close_when_idle()
        for _ in range(60):
            await asyncio.sleep(0)
        assert len(pages.answered) == before + 1
        assert transport.written.count(b"connection: close") == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("place", ["fails", "fails_at_head"])
@pytest.mark.parametrize("later", [False, True])
def test_a_handler_that_raises_ends_its_connection_and_is_heard_of(place: str, later: bool) -> None:
    troubles: list[object] = []

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble["exception"]))
        pages = SlowPages(Clock())
        setattr(pages, place, "/7")
        client, transport = connected(pages)
        data = b"".join(GET % number for number in range(8)) if later else GET % 7
        try:
            client.data_received(data)
        except RuntimeError as error:
            troubles.append(error)
        for _ in range(20):
            await asyncio.sleep(0)
        assert transport.closed
        assert b" 400 " not in transport.written

    asyncio.run(scenario())
    assert [str(trouble) for trouble in troubles] == ["a fault of our own"]


def test_an_answer_whose_steps_fail_twice_leaves_the_others_their_turns() -> None:
    troubles: list[object] = []
    done: list[str] = []

    def fails(*_: object) -> None:
        raise RuntimeError("a fault of our own")

    def then(name: str) -> Callable[[], None]:
        return lambda: done.append(name)

    async def scenario() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble["exception"]))
        in_turn = StepsInTurn()
        in_turn.add(SteppedAnswer(iter([None] * 3), then("first"), fails))
        in_turn.add(SteppedAnswer(iter([None]), fails, fails))
        in_turn.add(SteppedAnswer(iter([None] * 3), then("last"), fails))
        for _ in range(20):
            await asyncio.sleep(0)
        in_turn.add(SteppedAnswer(iter([]), then("later"), fails))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(scenario())
    assert done == ["first", "last", "later"]
    assert len(troubles) == 1
