"""Sent lines: lines of batches that are in the gateway's queue or at a replica, and what becomes of their answers.

Laws: a line that was taken from its file ends in one of three ways: its result is recorded, it waits in its file again,
or it is cut off with its batch; what cannot be recorded now is kept until it can. Nothing here reads or writes a file.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from headway.gateway.batch_api import result_lines
from headway.gateway.batch_api.batch_lines import BatchLines, InputReader
from headway.gateway.batch_api.batch_rows import ApiBatch, BatchStatus, LineResult, TakenLine
from headway.gateway.batch_api.line_client import LineAnswer, LineClient
from headway.gateway.batch_api.store_thread import StoreThread
from headway.gateway.openai.client_terms import CLASS_HEADER
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.relay.exchange import FULL
from headway.gateway.settings import BatchSettings
from headway.gateway.wire.messages import HttpRequest

RETRY_SECONDS_MAX = 60.0
_RETRY_SECONDS = 1.0
_FULL_TRIES = 20
"""How many times `tries_max` a line is sent to replicas that have too many requests."""
_REFUSALS_THAT_PASS = frozenset(
    [
        *(Reason.OVERLOADED, Reason.QUEUE_FULL, Reason.TENANT_QUEUE_FULL, Reason.CLASS_FULL, Reason.OVER_BUDGET),
        *(Reason.QUEUE_TIMEOUT, Reason.NO_REPLICA, Reason.DRAINING, Reason.NO_QUEUE, Reason.STANDBY),
    ]
)
"""Refusals of the gateway itself that say nothing of the request: it waits in its file again."""

Submit = Callable[[HttpRequest, LineClient, str], bool]
"""Puts a request of a tenant into the gateway; False if the tenant is not configured any more."""


@dataclass(slots=True, eq=False)
class OpenBatch:
    """A batch that has not ended, as far as it is kept in memory.

    Attributes:
        row: as it is in the store; its counts may be older.
        untaken: its lines that wait in the file.
        active: its lines that were taken, by number.
        input_reader: of its input file, until that is validated.
        rests_until: until when none of its lines is taken, seconds on the monotonic clock.
        closing: what it will end as, and what its other lines are told (code, message); None while lines are taken.
        cut_at: when lines at replicas are cut off too, seconds since 1970.
    """

    row: ApiBatch
    untaken: int = 0
    active: dict[int, ActiveLine] = field(default_factory=dict)
    input_reader: InputReader | None = None
    rests_until: float = 0.0
    closing: tuple[BatchStatus, tuple[str, str]] | None = None
    cut_at: float = 0.0

    def rest(self, seconds: float) -> None:
        """Take no line of it for so long."""
        self.rests_until = max(self.rests_until, time.monotonic() + seconds)

    def lose_input(self) -> None:
        """Its input file is gone from the disk: it ends with what was answered."""
        if self.closing is None:
            self.closing = BatchStatus.COMPLETED, result_lines.INPUT_LOST

    def may_send(self, now: float) -> bool:
        """Whether a line of it may be taken at this time of the monotonic clock."""
        is_going = self.row.status == BatchStatus.IN_PROGRESS and self.input_reader is None and self.closing is None
        return is_going and self.untaken > 0 and self.rests_until <= now


@dataclass(slots=True, eq=False)
class ActiveLine:
    """A line that was taken and has not ended; it is waiting in the queue, and for its next try."""

    batch: OpenBatch
    number: int
    custom_id: bytes
    try_number: int
    body_bytes: int
    request_id: str
    client: LineClient | None = None
    is_waiting: bool = True


class _Done(NamedTuple):
    """A line with the answer that it ends with."""

    line: ActiveLine
    answer: LineAnswer

    @property
    def is_answer(self) -> bool:
        """Whether it goes to the output file."""
        return 200 <= self.answer.status < 300 and not self.answer.is_too_long


class SentLines:
    """One per process. `waiting` lines are in the queue or wait for their next try, with `waiting_bytes` of bodies."""

    def __init__(
        self,
        settings: BatchSettings,
        dispatcher: Dispatcher,
        submit: Submit,
        lines: BatchLines,
        thread: StoreThread,
        changed: Callable[[OpenBatch], None],
    ) -> None:
        """`changed` hears of a batch of which a line moved on."""
        self.waiting = 0
        self.waiting_bytes = 0
        self.is_leaving = False  # the gateway drains: what is not answered goes back to its file
        self.ended: Counter[str] = Counter()  # lines, by how: completed or failed
        self.owner_rests_until: dict[str, float] = {}
        self._settings = settings
        self._dispatcher = dispatcher
        self._submit = submit
        self._lines = lines
        self._thread = thread
        self._changed = changed
        self._by_request: dict[int, ActiveLine] = {}
        self._done: list[_Done] = []
        self._given_back: list[tuple[ActiveLine, int]] = []  # and the tries that count
        self._delayed: list[tuple[float, ActiveLine]] = []

    def begin(self, batch: OpenBatch, taken: TakenLine) -> None:
        """Put a line that was taken into the gateway's queue."""
        request_id = result_lines.new_request_id()
        line = ActiveLine(batch, taken.number, taken.custom_id, taken.try_number, len(taken.body), request_id)
        batch.active[taken.number] = line
        self.waiting += 1
        self.waiting_bytes += line.body_bytes
        self._ask(line, taken.body)

    def _ask(self, line: ActiveLine, body: bytes) -> None:
        headers = [
            (b"content-type", b"application/json"),
            (b"accept-encoding", b"identity"),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", line.request_id.encode()),
            (CLASS_HEADER, b"offline"),
        ]
        http = HttpRequest(b"POST", line.batch.row.endpoint.encode(), headers, body)
        most, inside, answered = self._settings.answer_bytes_max, partial(self._inside, line), partial(self._came, line)
        client = line.client = LineClient(self._dispatcher, most, inside, answered)
        if not self._submit(http, client, line.batch.row.owner):
            line.batch.rest(RETRY_SECONDS_MAX)
            self._give_back(line)

    def _inside(self, line: ActiveLine, request: GatewayRequest) -> None:
        self._by_request[request.arrived.number] = line

    def dispatched(self, request: GatewayRequest) -> None:
        """A request of any client left the queue for a replica."""
        line = self._by_request.get(request.arrived.number)
        if line is not None:
            self._wait_no_more(line)
            self._changed(line.batch)

    def request_ended(self, request: GatewayRequest) -> None:
        """A request of any client ended."""
        self._by_request.pop(request.arrived.number, None)

    def _came(self, line: ActiveLine, answer: LineAnswer) -> None:
        """Sort an answer, from within the relay: its line is done, waits in its file again, or is tried again."""
        line.client = None
        self._changed(line.batch)
        if answer.reason in _REFUSALS_THAT_PASS and answer.retry_seconds is not None:
            seconds = min(max(answer.retry_seconds, _RETRY_SECONDS), RETRY_SECONDS_MAX)
            if answer.reason == Reason.OVER_BUDGET:
                self.owner_rests_until[line.batch.row.owner] = time.monotonic() + seconds
            else:
                line.batch.rest(seconds)
            self._give_back(line)
        elif self.is_leaving and (answer.status == 0 or answer.reason):
            self._give_back(line)
        elif answer.status in FULL and not answer.reason and line.try_number < _FULL_TRIES * self._settings.tries_max:
            line.batch.rest(min(answer.retry_seconds or _backoff_seconds(line), RETRY_SECONDS_MAX))
            self._give_back(line, tries=line.try_number)
        elif _is_worth_a_retry(answer) and line.try_number < self._settings.tries_max:
            if not line.is_waiting:
                line.is_waiting = True
                self.waiting += 1
                self.waiting_bytes += line.body_bytes
            self._delayed.append((time.monotonic() + _backoff_seconds(line), line))
        else:
            self._forget(line)
            self._done.append(_Done(line, answer))

    async def send_delayed(self) -> None:
        """Try lines again whose time has come."""
        now = time.monotonic()
        for entry in [entry for entry in self._delayed if entry[0] <= now]:
            line = entry[1]
            taken = await self._taken_again(line)  # what raises leaves it, and those after it, for the next round
            self._delayed.remove(entry)
            if taken is not None and _is_active(line):
                line.try_number = taken.try_number
                self._ask(line, taken.body)

    async def _taken_again(self, line: ActiveLine) -> TakenLine | None:
        """A line from its file; None if it was cut off meanwhile, or will be, since the file is gone."""
        if not _is_active(line):
            return None
        batch = line.batch
        try:
            return await self._thread.call(self._lines.take_again, batch.row, line.number)
        except FileNotFoundError:
            batch.lose_input()
            self._changed(batch)
            return None

    def leave_queue(self, batch: OpenBatch) -> None:
        """Its lines that no replica has wait in their file again."""
        for line in [line for line in batch.active.values() if line.is_waiting]:
            self._give_back(line)

    def cut(self, batch: OpenBatch, *, only_waiting: bool) -> None:
        """Stop a batch's lines: all, or those that no replica has."""
        for line in list(batch.active.values()):
            if line.is_waiting or not only_waiting:
                client, line.client = line.client, None
                self._forget(line)
                if client is not None:
                    client.leave()

    def _give_back(self, line: ActiveLine, tries: int | None = None) -> None:
        """Its line waits in its file again; this try does not count unless `tries` says so."""
        client, line.client = line.client, None
        self._forget(line)
        self._given_back.append((line, line.try_number - 1 if tries is None else tries))
        if client is not None:
            client.leave()

    def _wait_no_more(self, line: ActiveLine) -> None:
        if line.is_waiting:
            line.is_waiting = False
            self.waiting -= 1
            self.waiting_bytes -= line.body_bytes

    def _forget(self, line: ActiveLine) -> None:
        self._wait_no_more(line)
        line.batch.active.pop(line.number, None)

    async def record(self) -> None:
        """Write what came since the last time.

        Raises:
            OSError: it cannot be written, and is kept for the next time. sqlite3.Error: likewise.
        """
        while self._given_back or self._done:
            given_back, done = self._given_back, self._done
            self._given_back, self._done = [], []
            try:
                if given_back:
                    places = [(tries, line.batch.row.seq, line.number) for line, tries in given_back]
                    await self._thread.call(self._lines.give_back, places)
                    for line, _ in given_back:
                        line.batch.untaken += 1
                    given_back = []
                await self._thread.call(self._write, done)
            except (OSError, sqlite3.Error):
                self._given_back[:0], self._done[:0] = given_back, done
                raise
            for one in done:
                self.ended["completed" if one.is_answer else "failed"] += 1

    def _write(self, done: list[_Done]) -> None:
        """In the store's thread, for a long answer takes its time to write."""
        self._lines.record([_result(one) for one in done])


def _is_active(line: ActiveLine) -> bool:
    """Whether it was not cut off, or given back, meanwhile."""
    return line.batch.active.get(line.number) is line


def _backoff_seconds(line: ActiveLine) -> float:
    return min(_RETRY_SECONDS * 2.0 ** min(line.try_number - 1, 10), RETRY_SECONDS_MAX)


def _is_worth_a_retry(answer: LineAnswer) -> bool:
    """Whether another try may give another answer: it broke off, or a replica failed."""
    return not answer.is_too_long and (answer.status == 0 or (answer.status >= 500 and answer.status not in FULL))


def _result(done: _Done) -> LineResult:
    line, answer = done
    custom_id, tries = line.custom_id, line.try_number
    if answer.is_too_long:
        text = result_lines.failed_line(custom_id, "answer_too_long", "The answer is longer than allowed.", tries)
    elif answer.status == 0:
        text = result_lines.failed_line(custom_id, "answer_broken_off", "The answer broke off.", tries)
    else:
        text = result_lines.answered_line(custom_id, answer.status, line.request_id, answer.body, tries)
    usage = answer.usage if done.is_answer else None
    tokens = (usage.prompt_tokens, usage.cached_tokens, usage.output_tokens) if usage is not None else (0, 0, 0)
    return LineResult(line.batch.row.seq, line.number, done.is_answer, text, *tokens)
