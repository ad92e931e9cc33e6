"""The client of one line of a batch: inside this process, it takes the whole answer and keeps it.

Laws: the answer is heard of once, unless the client leaves first; no more of it is kept than its bound. A client whose
answer has ended names no exchange any more: else the two would wait for the next full collection of garbage, and with a
hundred lines a second that held the event loop for 100 ms.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

from headway.gateway.openai.error_responses import REASON_HEADER
from headway.gateway.openai.usage import Usage
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.exchange import Exchange
from headway.gateway.wire.client_connection import PendingAnswer
from headway.gateway.wire.messages import Headers, Response


class LineAnswer(NamedTuple):
    """What came: `status` is 0 where the answer broke off. `reason` is the gateway's, where the answer is its own."""

    status: int
    body: bytes
    reason: str = ""
    retry_seconds: float | None = None
    usage: Usage | None = None
    is_too_long: bool = False


class LineClient:
    """An `AnsweredClient` that makes its own exchange."""

    address = ""
    writable = True
    has_unsent = False

    def __init__(
        self,
        dispatcher: Dispatcher,
        bytes_max: int,
        begun: Callable[[GatewayRequest], None],
        ended: Callable[[LineAnswer], None],
    ) -> None:
        """`begun` hears of the request once it is inside, `ended` of its whole answer, of `bytes_max` at most."""
        self._pending: PendingAnswer | None = None
        self.request: GatewayRequest | None = None
        self._dispatcher = dispatcher
        self._bytes_max = bytes_max
        self._begun = begun
        self._ended: Callable[[LineAnswer], None] | None = ended
        self._status = 0
        self._headers: dict[bytes, bytes] = {}
        self._body = BytesIO()
        self._is_too_long = False  # a piece was left out

    def exchange(self, request: GatewayRequest) -> Exchange:
        """What carries its request."""
        self.request = request
        self._begun(request)
        return Exchange(request, self, self._dispatcher)

    def wait_for(self, pending: PendingAnswer | None) -> None:
        """The answer that comes, unless it has ended already."""
        if self._ended is not None:
            self._pending = pending

    def leave(self) -> None:
        """No answer is wanted any more: all work for it stops."""
        pending, self._pending, self._ended = self._pending, None, None
        if pending is not None:
            pending.client_left()

    # The answer comes

    def start(self, status: int, headers: Headers, length: int | None, *, more: bool = False) -> None:
        """Its head."""
        self._status, self._headers = status, dict(reversed(headers))

    def write(self, body: bytes) -> None:
        """Some of its body."""
        if not self._keep(body) and self._ended is not None:
            # At the next turn: the relay is in the middle of passing this piece on.
            asyncio.get_running_loop().call_soon(self._give_up)

    def write_last(self, body: bytes) -> None:
        """The rest of its body."""
        self._keep(body)

    def _keep(self, body: bytes) -> bool:
        """Keep a piece if none was left out before it and it is within the bound; whether it is kept."""
        self._is_too_long = self._is_too_long or self._body.tell() + len(body) > self._bytes_max
        if not self._is_too_long:
            self._body.write(body)
        return not self._is_too_long

    def finish(self) -> None:
        """It is whole, if all of it was kept."""
        if self._is_too_long:
            self._tell(LineAnswer(self._status, b"", is_too_long=True))
            return
        usage = self.request.relayed.usage if self.request is not None else None
        reason = self._headers.get(REASON_HEADER, b"").decode("latin-1")
        retry_seconds = _seconds(self._headers.get(b"retry-after-ms"), self._headers.get(b"retry-after"))
        self._tell(LineAnswer(self._status, self._body.getvalue(), reason, retry_seconds, usage))

    def respond(self, response: Response) -> None:
        """A whole answer of the gateway itself."""
        self.start(response.status, list(response.headers), len(response.body))
        self._body = BytesIO()
        self._body.write(response.body)
        self.finish()

    def abort(self) -> None:
        """It broke off."""
        self._tell(LineAnswer(0, b""))

    def break_off(self, response: Response) -> None:
        """An internal error; the request ends with it."""
        self.respond(response)

    def _give_up(self) -> None:
        ended = self._ended
        if ended is not None:
            self.leave()
            ended(LineAnswer(self._status, b"", is_too_long=True))

    def _tell(self, answer: LineAnswer) -> None:
        ended, self._ended, self._pending = self._ended, None, None
        if ended is not None:
            ended(answer)


def _seconds(milliseconds: bytes | None, seconds: bytes | None) -> float | None:
    """After which the request may be sent again, as a client library reads it; None where nothing is said."""
    for text, factor in ((milliseconds, 1_000.0), (seconds, 1.0)):
        if text is not None and text.isdigit():
            return int(text) / factor
    return None
