"""All routing policies on four traces, and what one queue in front of the replicas buys: docs/results/fleet.md.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.fleet.routings --out CELLS [--page docs/results/fleet.md]

Eight replicas of Llama-3.1-8B on H100. Some fifteen minutes of one core with the compiled engine, deterministic. A cell
that the folder CELLS holds already is not simulated again, so the command can be stopped and goes on where it was.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page_tables import show
from benchmarks.studies.fleet.cells import REQUESTS, Cell, Setting
from benchmarks.studies.fleet.tables import age_tables, load_tables, ranking, traces_table
from headway.policies.catalog import ROUTING
from headway.simulator.fleet_router import Queueing

LOADS = (0.7, 0.9, 1.1)
ORDERS = ("fcfs", "highest-response-ratio")
QUEUES: tuple[Queueing, ...] = ("gateway", "replicas")
AGES = (0.0, 1.0, 5.0)
AGED_LOAD = 0.9
ROUTINGS = [name for name in ROUTING if name != "adapter-affinity"]
"""No trace names an adapter: that one would be least-work."""
AGED_ROUTINGS = ("least-work", "power-of-two", "lmetric", "cached-prefix", "dual-map")
"""Those measured with old figures, too; round-robin reads none."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what was measured")
    parser.add_argument("--traces", nargs="+", default=list(REQUESTS), help="which")
    parser.add_argument("--page", type=Path, help="page whose tables to replace; printed without it")
    parser.add_argument("--only-show", action="store_true", help="show what is there, and measure nothing")
    typed = parser.parse_args()
    settings = [Setting(typed.out, trace) for trace in typed.traces]
    for setting in [] if typed.only_show else settings:
        for queue in QUEUES:
            setting.measure(load_cells(queue))
            print(f"{setting.trace}: requests wait at the {queue}", file=sys.stderr, flush=True)
        setting.measure(age_cells())
    show(
        {
            "fleet traces": traces_table(settings),
            "ranking in front": ranking(settings, load_cells("gateway")),
            "ranking pushed": ranking(settings, load_cells("replicas")),
            "routing in front": load_tables(settings, load_cells("gateway")),
            "routing pushed": load_tables(settings, load_cells("replicas")),
            "queue and age": age_tables(settings, age_cells()),
        },
        typed.page,
    )


def load_cells(queue: Queueing) -> Sequence[Cell]:
    """Every routing policy at every load under both orders, with exact figures."""
    return [Cell(load, queue, name, order) for name in ROUTINGS for load in LOADS for order in ORDERS]


def age_cells() -> Sequence[Cell]:
    """Some routing policies with exact and with old figures, in front and pushed, first come first served."""
    places = [(queue, age) for queue in QUEUES for age in AGES]
    return [Cell(AGED_LOAD, queue, name, signal_seconds=age) for name in AGED_ROUTINGS for queue, age in places]


if __name__ == "__main__":
    main()
