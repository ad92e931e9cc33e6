"""Runs `headway bound`: traffic in, lower bounds out."""

from __future__ import annotations

import sys
from dataclasses import replace

from headway.bench.experiment.bounding import SCHEMA, BoundResult
from headway.bench.experiment.bounding import bound as run_bound
from headway.bench.experiment.small_optimum import SmallOptimum, small_optimum
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files
from headway.bench.progress import progress, say
from headway.bench.report.bound_table import print_bounded
from headway.bounds.optimum import to_terminal
from headway.cli.command_options import ReplicaOptions
from headway.cli.modelled_replica import profile_files
from headway.cli.printing import print_rich
from headway.cli.result_files import STDOUT, command_line, json_file, write_json
from headway.cli.traffic import Traffic
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace


def run_bounds(
    traffic: Traffic, replica: ReplicaOptions, *, optimum_seconds: float | None, json: str | None, jobs: int | None
) -> None:
    """Bound each trace in turn; print a table for each and write one JSON file.

    Args:
        traffic: what is replayed.
        replica: what serves it.
        optimum_seconds: how long to look for the optimum of each; None not to.
        json: the file, or - for stdout; None to write none.
        jobs: processes to use; None for all cores.

    Raises:
        UserMistake: an option, a name or a trace is wrong.
    """
    check_files({"--json": json_file(json)}, [*traffic.files(), *profile_files(replica)])
    results = []
    for name in traffic.names:
        loads = traffic.loads_of(name)
        server, trace = traffic.prepare(name, replica, Slo())
        result = run_bound(trace, server, loads=loads, jobs=jobs, progress=progress, command=command_line())
        if optimum_seconds is not None:
            result = replace(result, optimum=_optimum(trace, server, optimum_seconds))
        results.append(result)
        if json != STDOUT:
            _show(result)
    if json is not None:
        write_json(json, [result.to_json() for result in results], schema=SCHEMA, several="traces")


def _optimum(trace: Trace, server: Replica, seconds: float) -> SmallOptimum:
    optimum = small_optimum(trace, server, time_limit_seconds=seconds, progress=to_terminal)
    if sys.stderr.isatty():
        say("")  # behind the line of progress
    return optimum


def _show(result: BoundResult) -> None:
    print_rich(lambda console: print_bounded(result, console))
