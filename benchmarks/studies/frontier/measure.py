r"""Simulates the days of the frontier study into a folder.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.frontier.measure --days DAYS \
        --traces train --replicas 8B --loads 0.9 1.1 --windows 0 1

What DAYS holds already is kept.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.studies.frontier.days import arms_of, cells_of, measure
from benchmarks.studies.priced_work.regret_cells import HALVES, REPLICAS, TRACES
from headway.bench.experiment.bundles import Bundle
from headway.bench.progress import progress
from headway.simulator.trace import Trace


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=Path, required=True)
    parser.add_argument("--traces", nargs="+", choices=[*HALVES, *TRACES], default=["all"])
    parser.add_argument("--replicas", nargs="+", choices=list(REPLICAS), default=["8B"])
    parser.add_argument("--loads", nargs="+", type=float, default=[0.9, 1.1])
    parser.add_argument("--windows", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--orders", nargs="+", default=[], help="only these; all by default")
    parser.add_argument("--not-orders", nargs="+", default=[], help="all but these")
    parser.add_argument("--jobs", type=int, default=None)
    asked = parser.parse_args()
    traces = [name for one in asked.traces for name in HALVES.get(one, (one,))]
    cells = cells_of(traces, asked.replicas, asked.loads)

    def arms(trace: Trace) -> list[Bundle]:
        wanted = [arm for arm in arms_of(trace) if not asked.orders or arm.ordering in asked.orders]
        return [arm for arm in wanted if arm.ordering not in asked.not_orders]

    with progress("simulating", len(cells) * len(asked.windows)) as on_done:
        measure(asked.days, cells, asked.windows, arms, jobs=asked.jobs, on_done=on_done)
    return 0


if __name__ == "__main__":
    sys.exit(main())
