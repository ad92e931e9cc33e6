"""Recorder of real traffic as a trace for `headway compare`: lengths and times only, never text.

Laws: lines are in order of arrival. A session is a number, not the name that the client gave it. Only whole answers are
recorded: the length of one that was refused, failed or left is unknown. A file that cannot be written any more ends the
recording with one log line, and delays no request.
"""

from __future__ import annotations

import json
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from headway.gateway.openai.error_responses import Reason
from headway.gateway.queueing.counts import Outcome
from headway.gateway.queueing.request_state import GatewayRequest

_SESSIONS_MAX = 100_000
log = logging.getLogger("headway.gateway")


class TraceRecorder:
    """Writes the trace format of `headway trace`; a line waits until all requests that arrived earlier have ended."""

    def __init__(self, path: Path, began: float) -> None:
        """Open a new file; %Y, %m, %d, %H, %M and %S in its name are replaced by the current time.

        Raises ValueError, one sentence, if the file exists or cannot be written.
        """
        path = path.with_name(time.strftime(path.name))
        try:
            self._file: TextIO | None = path.open("x", encoding="utf-8")
        except FileExistsError:
            raise ValueError(
                f"record: {path} exists already, and a trace is one run; name another file, or put the time of the "
                "start into the name: night-%Y%m%d-%H%M%S.jsonl"
            ) from None
        except OSError as error:
            raise ValueError(f"record: {path} cannot be written: {error.strerror or error}; check the path") from None
        self._path = path
        self._began = began
        self._open: deque[int] = deque()
        self._lines: dict[int, str] = {}  # by number, of requests that have ended; "" for one that is left out
        self._sessions: OrderedDict[str, tuple[int, int, float]] = OrderedDict()  # number, turns, end of the last
        self._numbers = 0

    def arrived(self, request: GatewayRequest) -> None:
        """Keep the request's place in the order of arrival."""
        if self._file is not None:
            self._open.append(request.arrived.number)

    def dispatched(self, request: GatewayRequest, now: float) -> None:
        """Nothing to note."""

    def ended(self, request: GatewayRequest, outcome: Outcome, reason: Reason | None, now: float) -> None:
        """Write the lines of all requests that have ended and before which none is open."""
        if self._file is None:
            return
        is_answered = outcome is Outcome.COMPLETED
        self._lines[request.arrived.number] = self._line(request, now) if is_answered else ""
        while self._open and self._open[0] in self._lines:
            self._write(self._lines.pop(self._open.popleft()))

    def flush(self) -> None:
        """Pass buffered lines to the operating system."""
        if self._file is not None:
            self._unless_full(self._file.flush)

    def close(self) -> None:
        """Write the lines of all requests that have ended, and close."""
        for number in self._open:
            self._write(self._lines.pop(number, ""))
        self._open.clear()
        if self._file is not None:
            self._unless_full(self._file.close)

    def _write(self, line: str) -> None:
        file = self._file
        if line and file is not None:
            self._unless_full(lambda: file.write(line))

    def _unless_full(self, put: Callable[[], object]) -> None:
        try:
            put()
        except OSError as error:
            log.error("recording stopped: %s cannot be written: %s", self._path, error.strerror or error)
            file, self._file = self._file, None
            self._open.clear()
            self._lines.clear()
            if file is not None:
                with suppress(OSError):  # logged already
                    file.close()

    def _line(self, request: GatewayRequest, now: float) -> str:
        arrived, queued, relayed = request.arrived, request.queued, request.relayed
        output = relayed.output_tokens
        if output < 1 or relayed.status != 200 or not arrived.endpoint.is_generation:
            return ""
        prompt = relayed.usage.prompt_tokens if relayed.usage is not None else queued.prompt_tokens
        record: dict[str, object] = {
            "timestamp": round((arrived.arrived_at - self._began) * 1000),
            "input_length": max(1, prompt),
            "output_length": output,
        }
        if queued.max_output_tokens is not None and queued.max_output_tokens >= output:
            record["max_tokens"] = queued.max_output_tokens
        if arrived.tenant:
            record["user_id"] = arrived.tenant
        if arrived.session is not None:
            record |= self._place(arrived.session, arrived.arrived_at, now)
        if arrived.deadline is not None:
            record["deadline_ms"] = round((arrived.deadline - arrived.arrived_at) * 1000)
        if arrived.priority:
            record["priority"] = arrived.priority
        return json.dumps(record, separators=(",", ":")) + "\n"

    def _place(self, session: str, arrived_at: float, now: float) -> dict[str, object]:
        known = self._sessions.get(session)
        if known is None:
            self._numbers += 1
        number, turn, ended_at = known or (self._numbers, 0, arrived_at)
        self._sessions[session] = (number, turn + 1, now)
        self._sessions.move_to_end(session)
        if len(self._sessions) > _SESSIONS_MAX:
            self._sessions.popitem(last=False)
        place: dict[str, object] = {"session_id": f"s{number}", "turn": turn}
        if turn:
            place["think_time_ms"] = max(0, round((arrived_at - ended_at) * 1000))
        return place
