"""A router's side of the queue: tells the actor of requests, several in one call, and gets their verdicts.

Laws: a request gets its verdict or `QueueLost`; what ended is told once; one call at a time is on its way, so that
calls get larger, not more, under load. All of it runs in the router's one event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from headway.gateway.queueing.counts import Outcome
from headway.ray.queue_messages import (
    ENTERED_MAX,
    End,
    Greeting,
    LostKind,
    QueueEntry,
    RefusedRequest,
    Rejection,
    RequestFacts,
    RouterNews,
    RouteVerdict,
    ServeReplica,
)

WAIT_SECONDS = 5.0
"""Of a call that waits for verdicts; each is a sign of life, too."""
AGAIN_SECONDS = 1.0
"""Between two tries to reach a lost queue."""
log = logging.getLogger("ray.serve.headway")


class QueueLost(Exception):
    """The queue cannot be reached; the request has to find a replica without it."""


class RequestRefused(Exception):
    """The queue refuses a request."""

    def __init__(self, refusal: RefusedRequest) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class QueueEnd(Protocol):
    """The other end: the actor, or a queue in this process."""

    async def greet(self, greeting: Greeting) -> None:
        """See `SharedQueue.greet`."""

    async def take(self, news: RouterNews) -> list[RouteVerdict] | None:
        """See `SharedQueue.take`."""

    async def wait(self, router: str, seconds: float) -> list[RouteVerdict] | None:
        """See `SharedQueue.wait`."""


Connect = Callable[[], Awaitable[QueueEnd]]
"""Reaches the queue, and starts it where there is none."""


class Ticket(NamedTuple):
    """A place at a replica. It has to be returned by `QueueClient.ended`."""

    number: int
    replica: str


class QueueClient:
    """One per router."""

    def __init__(
        self,
        router: str,
        connect: Connect,
        answer_seconds: float = 5.0,
        start_seconds: float = 30.0,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """`answer_seconds`: an answer that takes longer is a fault; `start_seconds`, of a queue that starts."""
        self.router = router
        self.is_lost = False
        self._connect = connect
        self._answer_seconds = answer_seconds
        self._start_seconds = start_seconds
        self._wait_seconds = wait_seconds
        self._number = 0
        self._waiting: dict[int, asyncio.Future[RouteVerdict]] = {}
        self._running: dict[int, str] = {}  # number -> replica, whichever side chose it
        self._replicas: Sequence[ServeReplica] = ()
        self._end: QueueEnd | None = None
        self._entered: dict[int, QueueEntry] = {}
        self._rejected: list[Rejection] = []
        self._ended: list[End] = []
        self._lost: list[tuple[str, LostKind]] = []
        self._lists_replicas = False
        self._is_heard = False  # since the greeting was written, what happens is told
        self._link: asyncio.Task[None] | None = None
        self._sending: asyncio.Task[None] | None = None

    # From the router

    async def choose(self, facts: RequestFacts) -> Ticket:
        """Wait until a request may go to a replica.

        Raises:
            RequestRefused: the queue refuses it.
            QueueLost: the queue cannot be reached.
        """
        self._number = number = self._number + 1
        return await self._verdict_on(number, facts)

    async def choose_again(self, ticket: Ticket, facts: RequestFacts, ongoing_requests: int | None) -> Ticket:
        """The same after its replica did not take it; it had `ongoing_requests`, None where that is not known."""
        self._running.pop(ticket.number, None)
        return await self._verdict_on(ticket.number, facts, Rejection(ticket.number, ongoing_requests, facts))

    async def _verdict_on(self, number: int, facts: RequestFacts, again: Rejection | None = None) -> Ticket:
        self._begin_link()
        if self.is_lost:
            raise QueueLost
        verdict: asyncio.Future[RouteVerdict] = asyncio.get_running_loop().create_future()
        self._waiting[number] = verdict
        if again is None:
            self._entered[number] = QueueEntry(number, facts)
        else:
            self._rejected.append(again)
        self._send_soon()
        try:
            given = await verdict
        except asyncio.CancelledError:
            self._waiting.pop(number, None)
            self._tell_end(number, Outcome.CANCELLED)
            raise
        if given.refusal is not None:
            raise RequestRefused(given.refusal)
        self._running[number] = given.replica
        return Ticket(number, given.replica)

    def begun_elsewhere(self, replica: str) -> Ticket:
        """A request goes to a replica that this router chose itself; the queue hears of it when it is back."""
        self._number += 1
        self._running[self._number] = replica
        return Ticket(self._number, replica)

    def ended(self, ticket: Ticket, outcome: Outcome = Outcome.COMPLETED) -> None:
        """Its place is free; a second call counts for nothing."""
        if self._running.pop(ticket.number, None) is not None:
            self._tell_end(ticket.number, outcome)

    def list_replicas(self, replicas: Sequence[ServeReplica]) -> None:
        """The replicas that Ray tells this router of."""
        if replicas != self._replicas:
            self._replicas, self._lists_replicas = replicas, True
            if replicas:
                self._begin_link()  # so that the queue has started when the first request comes
            self._send_soon()

    def lose(self, replica: str, kind: LostKind) -> None:
        """A replica died, or could not be reached."""
        if self._is_heard:
            self._lost.append((replica, kind))
            self._send_soon()

    def close(self) -> None:
        """Tell nothing more; the queue forgets this router when it hears nothing of it."""
        for task in (self._link, self._sending):
            if task is not None:
                task.cancel()

    def _tell_end(self, number: int, outcome: Outcome) -> None:
        if self._entered.pop(number, None) is None and self._is_heard:  # else it never left this process
            self._ended.append(End(number, outcome))
            self._send_soon()

    # To the queue

    def _begin_link(self) -> None:
        if self._link is None:
            self._link = asyncio.ensure_future(self._keep_linked())

    def _send_soon(self) -> None:
        """Send what there is, at the next turn of the event loop, unless a call is on its way: then after it."""
        if self._end is not None and self._sending is None:
            self._sending = asyncio.ensure_future(self._send_all(self._end))

    async def _send_all(self, end: QueueEnd) -> None:
        try:
            while self._end is end and (
                self._entered or self._rejected or self._ended or self._lost or self._lists_replicas
            ):
                async with asyncio.timeout(self._answer_seconds):
                    verdicts = await end.take(self._news())
                if verdicts is None:
                    raise ConnectionResetError("the queue does not know this router")
                self._heed(verdicts)
        except Exception as error:
            self._lose_queue(error, end)
        finally:
            self._sending = None

    def _news(self) -> RouterNews:
        entered = list(islice(self._entered.values(), ENTERED_MAX))
        for entry in entered:
            del self._entered[entry.number]
        news = RouterNews(
            self.router,
            entered,
            self._rejected,
            self._ended,
            self._replicas if self._lists_replicas else None,
            self._lost,
        )
        self._rejected, self._ended, self._lost, self._lists_replicas = [], [], [], False
        return news

    def _heed(self, verdicts: Sequence[RouteVerdict]) -> None:
        for verdict in verdicts:
            waiting = self._waiting.pop(verdict.number, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(verdict)
            # Else its client left meanwhile, which the queue is told, too.

    async def _keep_linked(self) -> None:
        """Reach the queue, wait for verdicts until it is lost, and begin again; until there is nothing to wait for."""
        was_lost = False
        while True:
            end: QueueEnd | None = None
            try:
                async with asyncio.timeout(self._start_seconds):
                    end = await self._connect()
                greeting = Greeting(self.router, self._replicas, list(self._running.items()))
                self._rejected, self._ended, self._lost, self._lists_replicas = [], [], [], False
                self._is_heard = True
                async with asyncio.timeout(self._start_seconds):
                    await end.greet(greeting)
                self._end, self.is_lost = end, False
                if was_lost:
                    log.info("headway: the queue of router %s is back; order holds again", self.router)
                    was_lost = False
                self._send_soon()  # what came and ended meanwhile
                while self._end is end:
                    async with asyncio.timeout(self._wait_seconds + self._answer_seconds):
                        verdicts = await end.wait(self.router, self._wait_seconds)
                    if verdicts is None:
                        raise ConnectionResetError("the queue does not know this router")
                    self._heed(verdicts)
                    if not (self._replicas or self._waiting or self._running):  # the deployment is gone
                        self._end, self._is_heard, self._link = None, False, None
                        return
            except Exception as error:
                self._lose_queue(error, end)
            was_lost = True
            await asyncio.sleep(AGAIN_SECONDS)

    def _lose_queue(self, error: Exception, end: QueueEnd | None) -> None:
        """Let each waiting request go on without the queue. `end` is the one that failed."""
        if self._end is not end and self._end is not None:
            return  # another one was reached since
        if not self.is_lost:
            why = str(error).partition("\n")[0] or type(error).__name__
            log.warning(
                "headway: the queue of router %s is lost (%s); %d waiting requests go to replicas that Ray picks, and "
                "order, fairness, deadlines and refusal do not hold until it is back",
                self.router,
                why,
                len(self._waiting),
            )
        self._end, self.is_lost, self._is_heard = None, True, False
        self._entered.clear()
        waiting, self._waiting = self._waiting, {}
        for verdict in waiting.values():
            if not verdict.done():
                verdict.set_exception(QueueLost())
