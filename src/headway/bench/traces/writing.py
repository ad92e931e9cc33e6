"""Writes a trace as JSON Lines: the fields of the Mooncake traces and a few more, as `load_trace` reads them."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import zstandard

from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace


def write_jsonl(trace: Trace, path: str | os.PathLike[str], *, packing: str | None = None) -> None:
    """Write a trace; `.gz` and `.zst` at the path's end pack it. The same trace gives the same bytes.

    Times are rounded to whole milliseconds, as the format has them, measured ones to microseconds. A turn's session
    is its number in the trace. `packing` is the ending to pack by where that of `path` does not tell.

    Raises:
        UserMistake: the file cannot be written.
    """
    target = Path(path)
    packing = target.suffix if packing is None else packing
    try:
        with target.open("wb") as raw:
            if packing == ".gz":
                # no name and no time in the header, so that equal traces are equal files
                with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
                    _write(trace, packed)
            elif packing == ".zst":
                with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
                    _write(trace, packed)
            else:
                _write(trace, raw)
    except OSError as fault:
        raise UserMistake(f"{target}: cannot be written ({fault.strerror}); check the folder and its rights") from None


def _write(trace: Trace, stream: BinaryIO | gzip.GzipFile | zstandard.ZstdCompressionWriter) -> None:
    encode = json.JSONEncoder(separators=(",", ":")).encode
    for record in _records(trace):
        stream.write(encode(record).encode() + b"\n")


def _records(trace: Trace) -> Iterator[dict[str, object]]:
    named = trace.tenant is not None
    milliseconds = np.rint(trace.arrived_seconds * 1000).astype(np.int64).tolist()
    for row, (at, prompt, output) in enumerate(
        zip(milliseconds, trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), strict=True)
    ):
        record: dict[str, object] = {"timestamp": at, "input_length": prompt, "output_length": output}
        if trace.max_output_tokens is not None and trace.max_output_tokens[row]:
            record["max_tokens"] = int(trace.max_output_tokens[row])
        if named:
            record["user_id"] = trace.tenants[int(trace.tenant[row])]  # type: ignore[index]
        if trace.session is not None and trace.session[row] >= 0:
            record |= _place(trace, row)
        if trace.deadline_seconds is not None and not np.isnan(trace.deadline_seconds[row]):
            record["deadline_ms"] = round(float(trace.deadline_seconds[row]) * 1000)
        if trace.has_later_deadlines:
            record |= _later(trace, row)
        if trace.priority is not None and trace.priority[row]:
            record["priority"] = int(trace.priority[row])
        if trace.offline is not None and trace.offline[row]:
            record["class"] = "offline"
        if trace.adapter is not None and trace.adapter[row] >= 0:
            record["adapter"] = trace.adapters[int(trace.adapter[row])]
        if trace.measured_ttft_seconds is not None and not np.isnan(trace.measured_ttft_seconds[row]):
            assert trace.measured_e2e_seconds is not None
            record["ttft_ms"] = round(float(trace.measured_ttft_seconds[row]) * 1000, 3)
            record["e2e_ms"] = round(float(trace.measured_e2e_seconds[row]) * 1000, 3)
        if trace.prefix_ids is not None:
            record["hash_ids"] = list(trace.prefix_ids[row])
        yield record


def _later(trace: Trace, row: int) -> dict[str, object]:
    """Deadlines after the first token, and the place in a program."""
    written: dict[str, object] = {}
    spans = {"tpot_deadline_ms": trace.tpot_deadline_seconds, "end_deadline_ms": trace.end_deadline_seconds}
    if trace.program is not None and trace.program[row] >= 0:
        written["program_id"] = f"p{trace.program[row]}"
        for name, column in (("stage", trace.stage), ("stages", trace.stages)):
            if column is not None and column[row] > 0:
                written[name] = int(column[row])
        spans["program_deadline_ms"] = trace.program_deadline_seconds
    for name, seconds in spans.items():
        if seconds is not None and not np.isnan(seconds[row]):
            written[name] = round(float(seconds[row]) * 1000, 3)
    return written


def _place(trace: Trace, row: int) -> dict[str, object]:
    assert trace.session is not None
    place: dict[str, object] = {"session_id": f"s{trace.session[row]}"}
    if trace.turn is not None:
        place["turn"] = int(trace.turn[row])
    if trace.think_seconds is not None:
        place["think_time_ms"] = round(float(trace.think_seconds[row]) * 1000)
    return place
