"""Reads recordings: requests as a real engine served them, with the times that it measured.

Two layouts are read, plain or packed as .gz or .zst:

    any trace or request log that `load_trace` reads and that tells both times of requests: JSON Lines or CSV with
    `ttft_ms` (arrival to first token) and `e2e_ms` (arrival to last token), benchmark results, spans, spend logs;
    a request where either is missing or null was not measured
    a CSV log of an engine core with `queued_s`, `first_token_s`, `last_token_s` on one clock, `prompt_tokens`,
    `output_tokens` and perhaps `prompt_blocks` (ids of the full 16-token blocks of the prompt, parted by blanks)
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.metrics.recording import Recording, of_trace
from headway.bench.traces import json_lines
from headway.bench.traces.comma_separated import header_of
from headway.bench.traces.finding import bare_name, find_file
from headway.bench.traces.loading import load_trace
from headway.bench.traces.opening import TraceFile
from headway.bench.traces.values import TOKENS_MAX
from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace

Seconds = npt.NDArray[np.float64]

_ENGINE_LOG = {"queued_s", "first_token_s", "last_token_s", "prompt_tokens", "output_tokens"}
_ENGINE_LOG_BLOCK_TOKENS = 16


def read_recording(text: str, *, columns: str | None = None, skip_bad_lines: bool = False) -> Recording:
    """Read a recording.

    Args:
        text: a path, or a name in the folder HEADWAY_TRACES.
        columns: which field is what, for a trace of no known layout; see `load_trace`.
        skip_bad_lines: leave bad lines of a trace out; see `load_trace`.

    Raises:
        UserMistake: one sentence: there is no such file, its layout is unknown, it measured nothing, a value is wrong.
    """
    path = find_file(text)
    with TraceFile(path) as file:
        if not json_lines.recognises(file.start):
            header, sign = header_of(file)
            if set(header) >= _ENGINE_LOG:
                return _engine_log(path, csv.DictReader((line for _, line in file.lines()), delimiter=sign))
    loaded = load_trace(text, columns=columns, skip_bad_lines=skip_bad_lines)
    recording = of_trace(loaded.trace, str(path))
    if recording is None:
        raise UserMistake(
            f"{path}: it has no measured times; give each line ttft_ms and e2e_ms, milliseconds from arrival to the "
            "first and to the last token"
        )
    return replace(recording, notes=loaded.notes)


def _engine_log(path: Path, rows: csv.DictReader[str]) -> Recording:
    """A CSV log of an engine core; requests arrive when the engine took them into its queue."""
    requests: list[tuple[Any, ...]] = []
    for row in rows:
        try:
            times = [float(row[name]) for name in ("queued_s", "first_token_s", "last_token_s")]
            tokens = [int(row[name]) for name in ("prompt_tokens", "output_tokens")]
            prefix = [int(block) for block in (row.get("prompt_blocks") or "").split()]
        except (TypeError, ValueError):
            raise UserMistake(f"{path}: line {rows.line_num}: a time or a length is not a number; correct it") from None
        if not all(map(math.isfinite, times)):
            raise UserMistake(f"{path}: line {rows.line_num}: a time is not finite; correct it")
        if not times[0] <= times[1] <= times[2]:
            raise UserMistake(f"{path}: line {rows.line_num}: queued, first and last token are not in this order")
        if min(tokens) < 1 or max(tokens) > TOKENS_MAX:
            raise UserMistake(f"{path}: line {rows.line_num}: prompt and output must have 1 to {TOKENS_MAX:,} tokens")
        requests.append((*times, *tokens, prefix))
    requests.sort(key=itemgetter(0))
    _check_some(path, len(requests))
    queued, first, last, prompt, output = zip(*(row[:5] for row in requests), strict=True)
    blocks = (
        _with_last_blocks(prompt, [row[5] for row in requests]) if "prompt_blocks" in (rows.fieldnames or ()) else None
    )
    trace = _trace(path, queued, prompt, output, blocks)
    start = np.array(queued)
    return Recording(trace, np.array(first) - start, np.array(last) - start, str(path))


def _with_last_blocks(prompt: Sequence[int], full: list[list[int]]) -> list[list[int]]:
    """The ids of full blocks, and one new id for the rest of each prompt, because a trace names every block."""
    fresh = max((block for row in full for block in row), default=-1) + 1
    return [
        [*blocks, fresh + row] if len(blocks) * _ENGINE_LOG_BLOCK_TOKENS < tokens else blocks
        for row, (tokens, blocks) in enumerate(zip(prompt, full, strict=True))
    ]


def _check_some(path: Path, requests: int) -> None:
    if not requests:
        raise UserMistake(f"{path}: no request in it was completed; record some")


def _trace(
    path: Path, arrived: Sequence[float], prompt: Sequence[int], output: Sequence[int], blocks: list[list[int]] | None
) -> Trace:
    """Output lengths were fixed in such runs, so every request ends at its bound."""
    return Trace(
        bare_name(path),
        np.array(arrived) - arrived[0],
        np.array(prompt, np.int64),
        np.array(output, np.int64),
        max_output_tokens=np.array(output, np.int64),
        prefix_ids=blocks,
        prefix_block_tokens=_ENGINE_LOG_BLOCK_TOKENS,
    )
