"""Recorder of real traffic as a trace for `headway compare`: lengths and times only, never text.

Laws: lines are in order of arrival. A session is a number, not the name that the client gave it. Only whole answers
have an output length and times; of the others stands only that they arrived, and their outcome. What was not measured
is not written. A file that cannot be written any more ends the recording with one log line. A slow disk delays no
request: a thread writes, and what waits for it is bounded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush, merge
from pathlib import Path
from typing import TextIO

from headway.domain.later_deadlines import LaterDeadlines
from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest

_SESSIONS_MAX = 100_000  # and so many programs
_HELD_LINES_MAX = 10_000
_UNWRITTEN_BYTES_MAX = 64 << 20
_HELD_SECONDS_MAX = 60.0  # what a crash loses at most
_SEQUENCES_MAX = 128  # lines of one request; OpenAI's own bound of `n`
log = logging.getLogger("headway.gateway")


@dataclass(slots=True)
class _Session:
    number: int
    ended_at: float  # of its latest turn that has ended; before that the first arrival
    turns: int = 0


class TraceRecorder:
    """Writes the trace format of `headway trace`, with bounded memory.

    A line waits, in order of arrival, until the requests that arrived earlier have ended, but only so long, and only so
    many wait. The line of a request that ends after that goes into a second file, and into its place when we close.
    """

    def __init__(self, path: Path, began: float) -> None:
        """A recorder of a new file; %Y, %m, %d, %H, %M and %S in its name are replaced by the current time.

        Raises ValueError, one sentence, if the file exists or cannot be written. It is made when the recording opens,
        so that a start that fails for another reason leaves no file behind.
        """
        path = path.with_name(time.strftime(path.name))
        if path.exists():
            raise _exists(path)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            why = "it may not be written to" if path.parent.is_dir() else "its folder does not exist"
            raise ValueError(f"record: {path} cannot be written: {why}; check the path")
        self._file: TextIO | None = None
        self._path = path
        self._late_path = path.with_name(f"{path.name}.late")
        self._late_file: TextIO | None = None
        self._began = began
        self._open: OrderedDict[int, dict[str, object]] = OrderedDict()  # number -> place in its session, if any
        self._held: list[tuple[int, float, str]] = []  # a heap of number, end and lines
        self._unwritten: list[tuple[bool, str]] = []  # lines for the files, and whether they are late
        self._unwritten_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._has_thread = False  # one writes now
        self._given_up: list[TextIO] = []  # files that cannot be written any more, to be closed
        self._written = 0  # the highest number whose lines are in the file, or wait for the disk
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._numbers = 0
        self._programs: OrderedDict[tuple[str, str], int] = OrderedDict()  # (payer, name) -> its number
        self._programs_seen = 0

    def open(self) -> None:
        """Make the file and record from now on. Raises ValueError as the constructor does."""
        try:
            self._file = _new_file(self._path)
        except FileExistsError:
            raise _exists(self._path) from None
        except OSError as error:
            why = error.strerror or error
            raise ValueError(f"record: {self._path} cannot be written: {why}; check the path") from None

    def arrived(self, request: GatewayRequest) -> None:
        """Keep the request's place in the order of arrival, and in its session."""
        arrived = request.arrived
        if self._file is not None:
            place = self._place(arrived.session, arrived.arrived_at) if arrived.session is not None else {}
            self._open[arrived.number] = place

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Keep the lines of a request, and write those before which no request is open."""
        place = self._open.pop(request.arrived.number, None)
        if self._file is None or place is None:
            return
        session = self._sessions.get(request.arrived.session or "")
        if session is not None:
            session.ended_at = now
        lines = self._lines(request, place, outcome, now)
        if lines:
            heappush(self._held, (request.arrived.number, now, lines))
        self._release(-math.inf)

    def flush_soon(self, now: float) -> None:
        """Write in a thread what need not wait any longer, about once a second."""
        self._release(now - _HELD_SECONDS_MAX)
        if self._has_thread:
            if self._unwritten_bytes > _UNWRITTEN_BYTES_MAX:
                self._stop("the disk is too slow")
        elif self._unwritten:
            self._writing = asyncio.create_task(self._put_in_thread(self._take()))

    async def end(self) -> None:
        """Close the files when the thread has written."""
        if self._writing is not None:
            await self._writing
        await asyncio.to_thread(self.close)

    def flush(self, now: float = math.inf) -> None:
        """Write what need not wait any longer."""
        self._release(now - _HELD_SECONDS_MAX)
        self._unless_full(partial(self._put, self._take()))

    def close(self) -> None:
        """Write the lines of all requests that have ended, put late ones into their places, and close."""
        self._open.clear()
        self._release(-math.inf)
        self._unless_full(partial(self._put, self._take()))
        late, self._late_file = self._late_file, None
        if self._file is not None:
            self._unless_full(self._file.close)
        if late is not None:
            self._unless_full(late.close)
            if self._file is not None:
                self._unless_full(self._merge)

    async def _put_in_thread(self, batch: list[tuple[bool, str]]) -> None:
        self._has_thread = True
        try:
            await asyncio.to_thread(self._put, batch)
        except OSError as error:
            self._stop(error.strerror or str(error))
        finally:
            self._has_thread = False
            self._close_given_up()

    def _take(self) -> list[tuple[bool, str]]:
        batch, self._unwritten, self._unwritten_bytes = self._unwritten, [], 0
        return batch

    def _put(self, batch: list[tuple[bool, str]]) -> None:
        for is_late in (False, True):
            lines = "".join([lines for late, lines in batch if late is is_late])
            file = self._file if not is_late or not lines else self._late()
            if file is not None and lines:
                file.write(lines)
                file.flush()

    def _release(self, before: float) -> None:
        """Write what need not wait: nothing earlier is open, it ended `before` then, or too many wait."""
        first_open = next(iter(self._open), math.inf)
        while self._held:
            number, ended_at, lines = self._held[0]
            if number > first_open and ended_at > before and len(self._held) <= _HELD_LINES_MAX:
                return
            heappop(self._held)
            self._write(number, lines)

    def _write(self, number: int, lines: str) -> None:
        if self._file is None:
            return
        self._unwritten.append((number <= self._written, lines))
        self._unwritten_bytes += len(lines)
        self._written = max(self._written, number)

    def _late(self) -> TextIO:
        if self._late_file is None:
            self._late_file = _new_file(self._late_path)
        return self._late_file

    def _merge(self) -> None:
        """Put the late lines into their places. The file as it was is replaced only once the new one is whole."""
        with self._late_path.open(encoding="utf-8") as file:
            late = sorted(file, key=_milliseconds)
        whole = self._path.with_name(f"{self._path.name}.whole")
        with self._path.open(encoding="utf-8") as ours, _new_file(whole) as file:
            file.writelines(merge(late, ours, key=_milliseconds))
        whole.replace(self._path)
        self._late_path.unlink()

    def _unless_full(self, put: Callable[[], object]) -> None:
        try:
            put()
        except OSError as error:
            self._stop(error.strerror or str(error))

    def _stop(self, why: str) -> None:
        log.error("recording stopped: %s cannot be written: %s", self._path, why)
        self._given_up += [file for file in (self._file, self._late_file) if file is not None]
        self._file = self._late_file = None
        self._open.clear()
        self._held.clear()
        self._take()
        if not self._has_thread:
            self._close_given_up()

    def _close_given_up(self) -> None:
        while self._given_up:
            with suppress(OSError):  # logged already
                self._given_up.pop().close()

    def _lines(self, request: GatewayRequest, place: dict[str, object], outcome: Outcome, now: float) -> str:
        """A line for each sequence of the answer; the first one stands in the session and has what was measured."""
        arrived, queued, relayed = request.arrived, request.queued, request.relayed
        if not arrived.endpoint.is_generation:
            return ""
        is_whole = outcome is Outcome.COMPLETED
        output = -(-relayed.output_tokens // queued.sequences)
        if is_whole and (output < 1 or relayed.status != 200):
            return ""
        prompt = relayed.usage.prompt_tokens if relayed.usage is not None else queued.prompt_tokens
        record: dict[str, object] = {
            "timestamp": round((arrived.arrived_at - self._began) * 1000),
            "input_length": max(1, prompt // arrived.prompt.prompts),
        }
        if is_whole:
            record["output_length"] = output
        if queued.max_output_tokens is not None and queued.max_output_tokens >= output:
            record["max_tokens"] = queued.max_output_tokens
        if arrived.tenant:
            record["user_id"] = arrived.tenant
        if arrived.request_class != "online":
            record["class"] = arrived.request_class
        if arrived.deadline is not None:
            record["deadline_ms"] = round((arrived.deadline - arrived.arrived_at) * 1000)
        if arrived.later_deadlines is not None:
            record |= self._later(arrived.later_deadlines.moved(-arrived.arrived_at), arrived.payer)
        if arrived.priority:
            record["priority"] = arrived.priority
        if queued.adapter is not None:
            record["adapter"] = queued.adapter
        if arrived.model and is_whole:  # a name that no replica has is a client's own text
            record["model"] = arrived.model
        record["outcome"] = outcome.value
        if not is_whole:
            return _line(record | place)
        others = min(queued.sequences, _SEQUENCES_MAX) - 1
        return _line(record | place | _measured(request, now)) + _line(record) * others

    def _place(self, session: str, arrived_at: float) -> dict[str, object]:
        known = self._sessions.get(session)
        if known is None:
            self._numbers += 1
            known = self._sessions[session] = _Session(self._numbers, arrived_at)
            if len(self._sessions) > _SESSIONS_MAX:
                self._sessions.popitem(last=False)
        self._sessions.move_to_end(session)
        place: dict[str, object] = {"session_id": f"s{known.number}", "turn": known.turns}
        if known.turns:
            place["think_time_ms"] = max(0, round((arrived_at - known.ended_at) * 1000))
        known.turns += 1
        return place

    def _later(self, later: LaterDeadlines, payer: str) -> dict[str, object]:
        """Deadlines after the first token, from arrival on, and the place in a program, whose name is a number."""
        record: dict[str, object] = {}
        if later.tpot_seconds is not None:
            record["tpot_deadline_ms"] = round(later.tpot_seconds * 1000, 3)
        if later.end is not None:
            record["end_deadline_ms"] = round(later.end * 1000)
        program = later.program
        if program is not None:
            key = payer, program.program
            if key not in self._programs:
                self._programs_seen += 1
                self._programs[key] = self._programs_seen
                if len(self._programs) > _SESSIONS_MAX:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
            record |= {"program_id": f"p{self._programs[key]}", "stage": program.stage}
            if program.stages is not None:
                record["stages"] = program.stages
            if program.deadline is not None:
                record["program_deadline_ms"] = round(program.deadline * 1000)
        return record


def _measured(request: GatewayRequest, now: float) -> dict[str, object]:
    """Milliseconds from arrival to the first token of a stream, and to the end; prompt tokens found in a cache."""
    arrived, relayed = request.arrived, request.relayed
    measured: dict[str, object] = {}
    if arrived.streams and relayed.first_byte_at is not None:
        measured["ttft_ms"] = round((relayed.first_byte_at - arrived.arrived_at) * 1000, 3)
    measured["e2e_ms"] = round((now - arrived.arrived_at) * 1000, 3)
    if relayed.usage is not None:
        measured["cached_tokens"] = relayed.usage.cached_tokens
    return measured


def _exists(path: Path) -> ValueError:
    return ValueError(
        f"record: {path} exists already, and a trace is one run; name another file, or put the time of the start into "
        "the name: night-%Y%m%d-%H%M%S.jsonl"
    )


def _new_file(path: Path) -> TextIO:
    """A file that was not there, for its owner only: it names tenants."""
    path.touch(0o600, exist_ok=False)
    return path.open("w", encoding="utf-8")


def _line(record: dict[str, object]) -> str:
    return json.dumps(record, separators=(",", ":")) + "\n"


def _milliseconds(line: str) -> float:
    """The arrival of a line, which is its first field."""
    return float(line[line.index(":") + 1 : line.index(",")])
