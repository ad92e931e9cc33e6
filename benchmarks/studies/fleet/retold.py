"""Published gains of routing, retold on our traces: docs/results/fleet.md.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.fleet.retold --out CELLS [--page docs/results/fleet.md]

DualMap: load at which nine requests in ten have their first token in time. LMetric: mean TTFT against turns. HexGen: an
unequal fleet. Requests are pushed to the replicas on arrival, first come first served, with exact figures. The folder
CELLS may be that of `routings.py`; what it holds already is not simulated again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.page_tables import show
from benchmarks.studies.fleet.cells import REQUESTS, Cell, Setting
from benchmarks.studies.fleet.tables import head, line, seconds

CAPACITY_TRACE = "mooncake_conversation"
TTFT_BOUND = "5"
IN_TIME = 0.9
CAPACITY_LOADS = [round(0.5 + 0.05 * step, 2) for step in range(25)]
CAPACITY_ROUTINGS = ("round-robin", "least-work", "prefix-affinity", "cached-prefix", "lmetric", "dual-map")
LOADS = (0.7, 0.9, 1.1)
AGAINST = ("round-robin", "least-work")
UNEQUAL = "4 × a100 + 4 × l40s"
UNEQUAL_ROUTINGS = ("round-robin", "power-of-two", "least-work", "lmetric", "weighted-dispatch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps what was measured")
    parser.add_argument("--page", type=Path, help="page whose tables to replace; printed without it")
    typed = parser.parse_args()
    equal = {trace: Setting(typed.out, trace) for trace in REQUESTS}
    unequal = Setting(typed.out, CAPACITY_TRACE, UNEQUAL)
    show(
        {
            "DualMap": capacity_table(equal[CAPACITY_TRACE]),
            "LMetric": product_table([*equal.values()]),
            "HexGen": unequal_table(unequal),
        },
        typed.page,
    )


def capacity(setting: Setting, routing: str) -> float | None:
    """The highest load of the grid at which enough requests are in time; None if there is none.

    Found by halving, so it is taken for granted that the share in time falls as the load grows.
    """
    low, high = -1, len(CAPACITY_LOADS)
    while high - low > 1:
        middle = (low + high) // 2
        cell = Cell(CAPACITY_LOADS[middle], "replicas", routing)
        setting.measure([cell])
        row = setting.row(cell)
        assert row is not None
        low, high = (middle, high) if row["ttft_within"][TTFT_BOUND] >= IN_TIME else (low, middle)
    return None if low < 0 else CAPACITY_LOADS[low]


def capacity_table(setting: Setting) -> str:
    """Capacity of each routing policy, and what the fleet finds in its caches there."""
    found = {routing: capacity(setting, routing) for routing in CAPACITY_ROUTINGS}
    base = found[CAPACITY_ROUTINGS[0]]
    lines = head(["routing", "load", "requests/s", f"÷ {CAPACITY_ROUTINGS[0]}", "prompt tokens in caches there"])
    for routing, load in found.items():
        if load is None or base is None:
            lines.append(line([routing, f"below {CAPACITY_LOADS[0]:g}", "–", "–", "–"]))
            continue
        row = setting.row(Cell(load, "replicas", routing))
        assert row is not None
        rate = f"{load * setting.facts['saturation']:.1f}"
        lines.append(line([routing, f"{load:.2f}", rate, f"{load / base:.2f}", f"{100 * row['hit_share']:.0f} %"]))
    return "\n".join(lines)


def product_table(settings: Sequence[Setting]) -> str:
    """Mean TTFT of lmetric against two others, per trace and load."""
    lines = head(["trace, load", "lmetric, s", *[f"{name}, s" for name in AGAINST], *[f"÷ {name}" for name in AGAINST]])
    for setting in settings:
        cells = [Cell(load, "replicas", name) for load in LOADS for name in ("lmetric", *AGAINST)]
        setting.measure(cells)
        for load in LOADS:
            ours, *others = [row["ttft_mean"] for row in setting.rows([cell for cell in cells if cell.load == load])]
            told = [seconds(value) for value in (ours, *others)] + [f"{ours / other:.2f}" for other in others]
            lines.append(line([f"{setting.trace}, {load:g}", *told]))
    return "\n".join(lines)


def unequal_table(setting: Setting) -> str:
    """Times of the unequal fleet, and the share of requests that its A100 got, over the loads."""
    lines = head(["routing", *[f"load {load:g}" for load in LOADS], "requests on A100"])
    for routing in UNEQUAL_ROUTINGS:
        cells = [Cell(load, "replicas", routing) for load in LOADS]
        setting.measure(cells)
        rows = setting.rows(cells)
        told = [
            f"{seconds(row['ttft_mean'])}, {seconds(row['ttft_p99'])}; {seconds(row['e2e_mean'])}, "
            f"{seconds(row['e2e_p99'])}"
            for row in rows
        ]
        sent = [sum(row["requests_of"][:4]) / sum(row["requests_of"]) for row in rows]
        lines.append(line([routing, *told, f"{100 * min(sent):.0f}–{100 * max(sent):.0f} %"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
