"""What happened to each request of a run: a table with a row for each, and its files."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.bench.output_files import replacing
from headway.bench.user_mistake import UserMistake
from headway.simulator.fleet_outcome import FleetOutcome
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

COLUMNS = (
    "policy",
    "load",
    "request",
    "tenant",
    "prompt_tokens",
    "output_tokens",
    "arrived_seconds",
    "admitted_seconds",
    "first_token_seconds",
    "ended_seconds",
    "ttft_seconds",
    "e2e_seconds",
    "cached_tokens",
    "preemptions",
    "recomputed_tokens",
    "replica",
    "outcome",
)
"""Columns of the table. `request` counts the trace's rows from 0; `load` is None where arrivals were not scaled."""


@dataclass(frozen=True, slots=True)
class RequestTable:
    """The requests of one run, a column for each of `COLUMNS`; times are seconds since the trace's start.

    NaN stands for what did not happen. `outcome` is "completed", "refused: …", "failed: …" or "unfinished"; `replica`
    is "" where none served it.
    """

    columns: dict[str, Sequence[Any]]

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """A row for each request, None for what did not happen."""
        columns = [self.columns[name] for name in COLUMNS]
        for row in zip(*columns, strict=True):
            yield tuple(None if value != value else value for value in row)  # noqa: PLR0124 - NaN


def request_table(
    policy: str,
    load: float | None,
    trace: Trace,
    day: DayOutcome,
    fleet: FleetOutcome | None,
    replica_ids: Sequence[str],
) -> RequestTable:
    """The table of one run; `replica_ids` are the fleet's in order, or the one replica's."""
    count = len(trace)
    arrived, first, ended = (_seconds(times) for times in (day.arrived_ps, day.first_token_ps, day.ended_ps))
    served = np.where(np.isnan(_seconds(day.admitted_ps)), -1, 0) if fleet is None else fleet.replica
    tenant = np.zeros(count, np.int64) if trace.tenant is None else trace.tenant
    outcome = np.where(np.isnan(ended), "unfinished", "completed").astype(object)
    for row, reason in [*day.refused.items()]:
        outcome[row] = f"refused: {reason}"
    for row, reason in day.failed.items():
        outcome[row] = f"failed: {reason}"
    columns = {
        "policy": [policy] * count,
        "load": [load] * count,
        "request": range(count),
        "tenant": [trace.tenants[index] for index in tenant.tolist()],
        "prompt_tokens": trace.prompt_tokens.tolist(),
        "output_tokens": trace.output_tokens.tolist(),
        "arrived_seconds": arrived.tolist(),
        "admitted_seconds": _seconds(day.admitted_ps).tolist(),
        "first_token_seconds": first.tolist(),
        "ended_seconds": ended.tolist(),
        "ttft_seconds": (first - arrived).tolist(),
        "e2e_seconds": (ended - arrived).tolist(),
        "cached_tokens": day.cached_tokens.tolist(),
        "preemptions": day.preemptions.tolist(),
        "recomputed_tokens": day.recomputed_tokens.tolist(),
        "replica": ["" if index < 0 else replica_ids[index] for index in served.tolist()],
        "outcome": outcome.tolist(),
    }
    return RequestTable(columns)


def check_requests_file(path: Path, option: str) -> None:
    """Raise UserMistake if `write_requests` could not write such a file."""
    if path.suffix not in (".csv", ".parquet"):
        raise UserMistake(f"{option} {path}: end the name with .csv or .parquet")
    if path.suffix == ".parquet":
        _parquet(option)


def write_requests(tables: Sequence[RequestTable], path: Path, option: str) -> None:
    """Write the tables one after the other into one file, `.csv` or `.parquet`.

    Raises:
        UserMistake: another ending, a file that cannot be written, or Parquet without its package.
    """
    check_requests_file(path, option)
    with replacing(path, option) as temporary:
        if path.suffix == ".parquet":
            arrow, parquet = _parquet(option)
            joined = {name: [value for table in tables for value in table.columns[name]] for name in COLUMNS}
            parquet.write_table(arrow.table(joined), temporary)
            return
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for table in tables:
                writer.writerows(table.rows())


def _parquet(option: str) -> tuple[Any, Any]:
    try:
        import pyarrow  # noqa: PLC0415 - an extra
        import pyarrow.parquet  # noqa: PLC0415
    except ModuleNotFoundError as missing:
        raise UserMistake(f"{option}: Parquet needs pyarrow: pip install 'headway[parquet]'") from missing
    return pyarrow, pyarrow.parquet


def _seconds(times: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(times == NEVER, np.nan, times / PS_PER_SECOND)
