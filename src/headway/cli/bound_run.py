"""What `headway bound` does once its options are read: traffic in, bounds out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from headway.bench.experiment.bounding import SCHEMA, BoundResult
from headway.bench.experiment.bounding import bound as run_bound
from headway.bench.experiment.small_optimum import SmallOptimum, small_optimum
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import replacing
from headway.bench.report.bound_table import print_bounded
from headway.bench.workloads import WORKLOADS
from headway.bounds.optimum import to_terminal
from headway.cli.compare_options import CompareOptions, parse_loads
from headway.cli.compare_run import DEFAULT_WORKLOAD, WORKLOAD_LOADS, check_outputs, command_line, prepare
from headway.cli.printing import print_rich
from headway.cli.progress import progress, say
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace


def run_bounds(options: CompareOptions, optimum_seconds: float | None = None) -> None:
    """Bound each trace in turn; print a table each and write one JSON file.

    Args:
        options: traffic and replica.
        optimum_seconds: how long to look for the optimum of each; None not to.

    Raises:
        UserMistake: an option, a name or a trace is wrong.
    """
    loads = parse_loads(options.load, options.loads)
    check_outputs(options)
    found = []
    for name in options.traces or [DEFAULT_WORKLOAD]:
        server, trace = prepare(name, options, Slo())
        own = WORKLOAD_LOADS if name in WORKLOADS and loads == (None,) else loads
        bounded = run_bound(trace, server, loads=own, jobs=options.jobs, progress=progress, command=command_line())
        if optimum_seconds is not None:
            bounded = replace(bounded, optimum=_optimum(trace, server, optimum_seconds))
        found.append(bounded)
        if options.json != "-":
            _show(bounded)
    if options.json is not None:
        _write(options.json, found)


def _optimum(trace: Trace, server: Replica, seconds: float) -> SmallOptimum:
    found = small_optimum(trace, server, time_limit_seconds=seconds, progress=to_terminal)
    if sys.stderr.isatty():
        say("")  # behind the line of progress
    return found


def _show(bounded: BoundResult) -> None:
    print_rich(lambda console: print_bounded(bounded, console))


def _write(name: str, found: list[BoundResult]) -> None:
    """One object, or a list of them under `traces` for several."""
    several = {"schema": SCHEMA, "traces": [bounded.to_json() for bounded in found]}
    content = found[0].to_json() if len(found) == 1 else several
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if name == "-":
        sys.stdout.write(text)
        return
    with replacing(Path(name), "--json") as temporary:
        temporary.write_text(text, encoding="utf-8")
    say(f"numbers: {name}")
