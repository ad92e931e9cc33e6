"""vLLM's own request log: text lines of an API server with `--enable-log-requests`, as vLLM 0.32 writes them.

Lengths stand only in the lines of level DEBUG (`VLLM_LOGGING_LEVEL=DEBUG`, and `--enable-log-outputs` for outputs):

    DEBUG 11-30 19:18:20 [...] Request ID details: prompt: '...', prompt_token_ids: [1, 2], prompt_embeds shape: None.
    INFO 11-30 19:18:20 [...] Received request ID: params: SamplingParams(..., max_tokens=16, ...), lora_request: None.
    DEBUG 11-30 19:18:20 [...] Generated response ID (streaming delta) details: output_token_ids: [7]
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass

from headway.bench.traces.column_map import ColumnMap
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.rows import Rows
from headway.bench.user_mistake import UserMistake

_LINE = re.compile(r"(?:DEBUG|INFO) (\d\d-\d\d \d\d:\d\d:\d\d) \[[^\]]*\] (.*)", re.DOTALL)
_RECEIVED = re.compile(r"Received request (\S+): params: ")
_BOUND = re.compile(r"\bmax_tokens=(\d{1,18})\b")
_PROMPT = re.compile(
    r"Request (\S+) details: prompt: .*, prompt_token_ids: \[([\d, ]*)\], prompt_embeds shape", re.DOTALL
)
_OUTPUT = re.compile(r"Generated response (\S+)(?: \(streaming \w+\))? details: output_token_ids: \[([\d, ]*)\]")
_OPEN_MAX = 100_000  # requests without an end yet; the longest open one is given up then
_LEAP_YEAR = 2000  # any: only differences count
_HALF_YEAR = 6  # months; a month that falls by more begins a year
_UNFINISHED = "the log has no token ids of the request's prompt and output"
LAYOUT = ColumnMap(
    {"arrival": "time", "prompt": "prompt_token_ids", "output": "output_token_ids", "max_output": "max_tokens"},
    {"arrival": 1.0},
    layout="vLLM request log",
)


@dataclass(slots=True)
class _LoggedRequest:
    line: int
    time: str
    prompt: int = 0
    output: int = 0
    bound: int | None = None


def recognises(start: bytes) -> bool:
    """Whether lines of vLLM's request logger are in the beginning of the file."""
    return start[:1] not in (b"{", b"[") and (b"] Received request " in start or b"] Generated response " in start)


def layout_of(file: TraceFile, names_columns: bool) -> ColumnMap:
    """The one layout of such a log.

    Raises:
        UserMistake: the user names columns, and there are none.
    """
    if names_columns:
        raise UserMistake(f"{file.label}: is a request log of vLLM, which has no columns; leave --columns out")
    return LAYOUT


def read(file: TraceFile, rows: Rows) -> None:
    """Every request whose prompt and output are logged into `rows`; other lines of the log are passed over.

    Raises:
        UserMistake: no request has both lengths in the log.
    """
    found: OrderedDict[str, _LoggedRequest] = OrderedDict()
    are_lengths_there = False
    year, last_month = 0, 0
    for number, text in file.lines():
        line = _LINE.search(text)
        if line is None:
            continue
        time, said = line.groups()
        month = int(time[:2])
        if not year:
            year = _LEAP_YEAR - (month > _HALF_YEAR)  # the 29th of February is in this year, or in the next
        elif last_month - month > _HALF_YEAR:
            year += 1
        last_month = month
        time = f"{year}-{time.replace(' ', 'T')}"
        if (match := _PROMPT.match(said)) is not None:
            _request(found, match[1], number, time).prompt = _count(match[2])
        elif (match := _RECEIVED.match(said)) is not None:
            bound = _BOUND.search(said)
            _request(found, match[1], number, time).bound = None if bound is None else int(bound[1])
        elif (match := _OUTPUT.match(said)) is not None and match[1] in found:
            found[match[1]].output += _count(match[2])
            are_lengths_there = True
        while len(found) > _OPEN_MAX:
            _add(found.popitem(last=False)[1], rows)
    if not are_lengths_there:
        raise UserMistake(
            f"{file.label}: vLLM logged no lengths; run it with VLLM_LOGGING_LEVEL=DEBUG, --enable-log-requests and "
            "--enable-log-outputs, or export its spans with --otlp-traces-endpoint"
        )
    rows.note("vLLM's log has whole seconds, no year, and no time of the first token or the end")
    for request in found.values():
        _add(request, rows)


def _request(found: OrderedDict[str, _LoggedRequest], name: str, line: int, time: str) -> _LoggedRequest:
    return found.setdefault(name, _LoggedRequest(line, time))


def _add(request: _LoggedRequest, rows: Rows) -> None:
    if not request.prompt or not request.output:
        rows.leave_out(_UNFINISHED)
        return
    record: dict[str, object] = {
        "time": request.time,
        "prompt_token_ids": request.prompt,
        "output_token_ids": request.output,
        "max_tokens": request.bound,
    }
    rows.add(request.line, record)


def _count(ids: str) -> int:
    return ids.count(",") + 1 if ids.strip() else 0
