"""Traffic window: the latest requests as lengths, times, tenants, sessions and prefix hashes; never text.

Law: it keeps at most `requests_max` requests, and of each at most `PREFIX_BLOCKS_MAX` hashes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from headway.domain.event import Admitted, Arrived, Cancelled, Completed, Event, FirstToken, Refused
from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import RequestId, RequestView

PREFIX_BLOCK_TOKENS = 512
PREFIX_BLOCKS_MAX = 256
COLUMNS = (
    "arrived_at",
    "started_at",
    "first_token_at",
    "ended_at",
    "prompt_tokens",
    "output_tokens",
    "max_output_tokens",
    "priority",
    "deadline_seconds",
    "tpot_deadline_seconds",
    "end_deadline_seconds",
    "stage",
    "stages",
    "program_deadline_seconds",
)
"""Numbers of a request, None where they are not known (yet) or not given."""


class SeenRequest:
    """One request of the window. Times are seconds on the shell's clock, None before they happen.

    `output_tokens` is None until it has ended; `prefix` are hashes of its prompt's leading blocks.
    """

    __slots__ = (*COLUMNS, "has_left", "prefix", "program", "replica", "session", "tenant")

    def __init__(
        self,
        arrived_at: float,
        prompt_tokens: int,
        *,
        max_output_tokens: int | None = None,
        priority: int = 0,
        deadline_seconds: float | None = None,
        tenant: str = "",
        session: str | None = None,
        prefix: Sequence[int] = (),
        later: LaterDeadlines | None = None,
    ) -> None:
        """`later` are its deadlines after the first token, from its arrival on."""
        self.arrived_at = arrived_at
        self.started_at: float | None = None
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.prompt_tokens = prompt_tokens
        self.output_tokens: int | None = None
        self.max_output_tokens = max_output_tokens
        self.priority = priority
        self.deadline_seconds = deadline_seconds
        program = None if later is None else later.program
        self.tpot_deadline_seconds = None if later is None else later.tpot_seconds
        self.end_deadline_seconds = None if later is None else later.end
        self.program = None if program is None else program.program
        self.stage = None if program is None else program.stage
        self.stages = None if program is None else program.stages
        self.program_deadline_seconds = None if program is None else program.deadline
        self.tenant = tenant
        self.session = session
        self.prefix = tuple(prefix[:PREFIX_BLOCKS_MAX])
        self.replica = ""
        self.has_left = False  # its client left, or it was refused: nothing is known of its length

    def started(self, at: float, prompt_tokens: int, replica: str) -> None:
        """It went to a replica; its prompt has been counted by now."""
        if self.started_at is None:
            self.started_at, self.prompt_tokens, self.replica = at, max(1, prompt_tokens), replica

    def answered(self, started_at: float, first_token_at: float | None, ended_at: float, output_tokens: int) -> None:
        """Its answer is whole; `started_at` is when it was sent last."""
        self.started_at, self.first_token_at = started_at, first_token_at
        self.ended_at, self.output_tokens = ended_at, output_tokens


class TrafficWindow:
    """The latest requests, in order of arrival."""

    def __init__(self, requests_max: int) -> None:
        self._seen: deque[SeenRequest] = deque(maxlen=requests_max)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, seen: SeenRequest) -> SeenRequest:
        """A request arrived; the oldest one goes where there are too many."""
        self._seen.append(seen)
        return seen

    def rows(self) -> list[SeenRequest]:
        """Those that have not left, in order of arrival."""
        return sorted((one for one in self._seen if not one.has_left), key=lambda one: one.arrived_at)


def columns_of(rows: Iterable[SeenRequest]) -> dict[str, Any]:
    """The requests as columns of plain values; names (tenants, sessions, replicas, programs) and hashes are numbers."""
    rows = list(rows)
    columns: dict[str, Any] = {name: [getattr(one, name) for one in rows] for name in COLUMNS}
    for name in ("tenant", "session", "replica"):
        numbers: dict[Any, int] = {}
        columns[name] = [
            -1 if (value := getattr(one, name)) is None else numbers.setdefault(value, len(numbers)) for one in rows
        ]
    programs: dict[tuple[str, str], int] = {}  # two tenants may have programs of one name
    columns["program"] = [
        -1 if one.program is None else programs.setdefault((one.tenant, one.program), len(programs)) for one in rows
    ]
    blocks: dict[int, int] = {}
    columns["prefix"] = [[blocks.setdefault(block, len(blocks)) for block in one.prefix] for one in rows]
    return columns


class WindowListener:
    """Fills a window from a scheduler's events; offline requests are left out, for they run in what is left."""

    def __init__(
        self, window: TrafficWindow, prefix_of: Callable[[RequestView], Sequence[int]] = lambda request: ()
    ) -> None:
        """`prefix_of` gives the hashes of a prompt's leading blocks of 512 tokens, each of all up to its end."""
        self._window = window
        self._prefix_of = prefix_of
        self._open: dict[RequestId, SeenRequest] = {}

    def observe(self, event: Event) -> None:
        """Note a time of a request."""
        match event:
            case Arrived(request=request) if request.id not in self._open and not request.is_offline:
                self._open[request.id] = self._window.add(_seen(request, self._prefix_of(request)))
            case Admitted(request=request, at=at):
                seen = self._open.get(request.id)
                if seen is not None and seen.started_at is None:
                    seen.started_at = at
            case FirstToken(request=request, at=at):
                seen = self._open.get(request.id)
                if seen is not None:
                    seen.first_token_at = at
            case Completed(request=request, at=at, output_tokens=output_tokens):
                seen = self._open.pop(request.id, None)
                if seen is not None:
                    seen.ended_at, seen.output_tokens = at, output_tokens
            case Cancelled(request=request) | Refused(request=request):
                seen = self._open.pop(request.id, None)
                if seen is not None:
                    seen.has_left = True
            case _:
                pass


def _seen(request: RequestView, prefix: Sequence[int]) -> SeenRequest:
    deadline = None if request.deadline is None else max(0.0, request.deadline - request.arrived_at)
    return SeenRequest(
        request.arrived_at,
        request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        priority=request.priority,
        deadline_seconds=deadline,
        tenant=request.tenant,
        session=request.session,
        prefix=prefix,
        later=None if request.later_deadlines is None else request.later_deadlines.moved(-request.arrived_at),
    )
