"""Sending a trace on the wall clock, and noting when what came back: times as the client sees them.

A turn of a session is sent after the one before it has ended and the client has thought. Nobody is retried: a refusal
is a refusal, counted by the endpoint's own reason.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from headway.bench.load_test.prompts import Prompts
from headway.gateway.openai.error_responses import REASON_HEADER
from headway.gateway.openai.usage import StreamUsageReader
from headway.gateway.wire.messages import Headers, header_lines
from headway.gateway.wire.upstream_pool import UpstreamPool
from headway.simulator.arrivals import FOREVER, Arrivals
from headway.simulator.day_columns import DayColumns
from headway.simulator.outcome import DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

_CONNECT_SECONDS = 10.0
_POLL_SECONDS = 0.05  # how long it takes at most to notice that a follow-up turn is due


class Sender:
    """One run of one trace. Create it inside the loop that runs it."""

    def __init__(
        self, url: str, trace: Trace, prompts: Prompts, *, authorization: bytes | None, on_end: Callable[[], None]
    ) -> None:
        self._trace = trace
        self._prompts = prompts
        self._pool = UpstreamPool(url, connect_seconds=_CONNECT_SECONDS, clock=time.monotonic)
        self._authorization = authorization
        self._on_end = on_end
        self._arrivals = Arrivals(trace)
        self._news = asyncio.Event()
        self._inside: set[asyncio.Task[None]] = set()
        self.columns = DayColumns(len(trace))
        self.output_tokens = trace.output_tokens.copy()
        self.prompt_tokens = trace.prompt_tokens.copy()
        self.failures: dict[str, int] = {}
        self._began = 0.0

    async def run(self) -> tuple[Trace, DayOutcome]:
        """Send everything; the trace with the lengths that really came, and what became of every row."""
        self._began = time.monotonic()
        arrivals = self._arrivals
        while True:
            for at_ps, row in arrivals.take(self.now_ps()):
                self.columns.arrived_ps[row] = at_ps
                task = asyncio.create_task(self._send(row))
                self._inside.add(task)
                task.add_done_callback(self._inside.discard)
            if arrivals.next_ps == FOREVER and not self._inside:
                break
            left = (arrivals.next_ps - self.now_ps()) / PS_PER_SECOND
            self._news.clear()
            with_timeout = min(max(left, 0.0), _POLL_SECONDS)
            try:
                await asyncio.wait_for(self._news.wait(), with_timeout)
            except TimeoutError:
                continue
        self._pool.close()
        came = replace(self._trace, output_tokens=self.output_tokens, prompt_tokens=self.prompt_tokens)
        return came, self.columns.outcome(0)

    def now_ps(self) -> int:
        """Picoseconds since the start."""
        return int((time.monotonic() - self._began) * PS_PER_SECOND)

    async def _send(self, row: int) -> None:
        answer = _SentRequest(self, row)
        try:
            connection = self._pool.take() or await self._pool.open()
            answer.was_kept = connection.answered > 0
            connection.send(self._request(row), answer)
            again = await answer.done
            if again:
                connection = await self._pool.open()
                answer = _SentRequest(self, row)
                connection.send(self._request(row), answer)
                await answer.done
        except (OSError, TimeoutError) as error:
            self.ended(row, f"it cannot be reached: {error or 'no answer in time'}")
        self._on_end()

    def ended(self, row: int, refusal: str | None) -> None:
        """A row is over; with a refusal the later turns of its session never come."""
        now = self.now_ps()
        if refusal is None:
            self.columns.ended_ps[row] = now
            self._arrivals.ended(row, now)
        else:
            self.columns.refused[row] = refusal
            for later in self._arrivals.following(row):
                self.columns.refused[later] = f"an earlier turn of its session was refused: {refusal}"
                self._on_end()
        self._news.set()

    def _request(self, row: int) -> bytes:
        body = self._prompts.body(row)
        trace = self._trace
        headers: Headers = [
            (b"host", self._pool.host_header),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
        ]
        if self._authorization is not None:
            headers.append((b"authorization", self._authorization))
        if trace.tenant is not None:
            headers.append((b"x-llm-d-inference-fairness-id", trace.tenants[int(trace.tenant[row])].encode()))
        if trace.session is not None and trace.session[row] >= 0:
            headers.append((b"x-session-id", b"%d" % int(trace.session[row])))
        if trace.deadline_seconds is not None and not np.isnan(trace.deadline_seconds[row]):
            headers.append((b"x-llm-d-slo-ttft-ms", b"%d" % round(float(trace.deadline_seconds[row]) * 1000)))
        if trace.priority is not None and trace.priority[row]:
            headers.append((b"x-request-priority", b"%d" % int(trace.priority[row])))
        line = b"POST %b/v1/completions HTTP/1.1\r\n" % self._pool.prefix
        return b"".join([line, header_lines(headers), b"\r\n", body])


class _SentRequest:
    """What came back for one row; a `Sink`. `done` is True if it has to be sent again on a fresh connection."""

    def __init__(self, sender: Sender, row: int) -> None:
        self._sender = sender
        self._row = row
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.was_kept = False
        self._watch = StreamUsageReader(hide_usage=False)
        self._status = 0
        self._reason = ""
        self._error = bytearray()
        self._last_ps = 0
        self._events = 0

    def upstream_head(self, status: int, headers: Headers, length: int | None, more: bool) -> None:
        self._status = status
        self._reason = dict(headers).get(REASON_HEADER, b"").decode("latin-1")

    def upstream_data(self, body: bytes) -> None:
        if self._status != 200:
            self._error += body[:2_000]
            return
        self._watch.pass_on(body)
        if b'"text"' not in body and b'"delta"' not in body:
            return  # a comment, the usage chunk, the end
        now = self._sender.now_ps()
        columns, row = self._sender.columns, self._row
        if not self._events:
            columns.first_token_ps[row] = now
            columns.admit(row, now, 0)
        else:
            columns.gap(now - self._last_ps, 0, 1, 1)
        self._events += 1
        self._last_ps = now
        if b'"error"' in body:
            self._error += body[:2_000]

    def upstream_end(self, body: bytes) -> None:
        if body:
            self.upstream_data(body)
        sender, row, usage = self._sender, self._row, self._watch.usage
        if self._status != 200 or self._error:
            sender.ended(row, self._reason or f"status {self._status}: {_message(bytes(self._error))}")
        elif usage is None or usage.output_tokens < 1:
            sender.ended(row, "the answer ended without a usage chunk")
        else:
            sender.output_tokens[row] = usage.output_tokens
            sender.prompt_tokens[row] = max(1, usage.prompt_tokens)
            sender.ended(row, None)
        self.done.set_result(False)

    def upstream_failed(self, why: str) -> None:
        if self.was_kept and not self._status:
            self.done.set_result(True)
            return
        self._sender.ended(self._row, f"failed: {why}")
        self.done.set_result(False)


def _message(body: bytes) -> str:
    try:
        told = json.loads(body.removeprefix(b"data: "))["error"]
        return str(told["message"] if isinstance(told, dict) else told)[:200]
    except (ValueError, KeyError, TypeError):
        return body[:80].decode("latin-1")
