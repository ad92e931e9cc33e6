"""The self-tuned threshold on recorded traces, simulated: each order with `tuning = "self-tuned"` and without.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.vllm.self_tuned_cells --out CELLS [--page docs/results/vllm.md]

Settings (traces, memory, saturation) are those of the regret table of priced-work, with fewer requests; a setting that
the folder CELLS holds already is not measured again, so a table after a change of the simulator needs a new folder.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.page_tables import show
from benchmarks.studies.priced_work import regret_cells as cells
from benchmarks.studies.vllm.cell_options import cell_options
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import at_rate, repeated
from headway.bench.user_mistake import UserMistake
from headway.simulator.rules import PluginRules

LOADS = (0.9, 1.1)
ORDERS = ("highest-response-ratio", "priced-work")
METRICS = ("ttft_mean", "ttft_p99", "normalised_mean", "e2e_mean")
TITLES = ("mean TTFT", "p99 TTFT", "mean normalised latency", "mean end-to-end latency")


def main() -> int:
    typed = cell_options(__doc__, long_requests=500)
    try:
        for trace in typed.traces:
            measure(trace, typed.long_requests if trace in cells.LONG else typed.requests, typed.out)
    except UserMistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    show({"self-tuned": table(typed.traces, typed.out)}, typed.page)
    return 0


def measure(name: str, requests: int, folder: Path) -> None:
    """Write the ratios of all cells of a trace; nothing if they are there. Raises UserMistake if of other requests."""
    path = folder / f"{name}-self-tuned.json"
    wanted = cells.Wanted(traces=[name], replicas=["8B"], loads=LOADS, requests=requests)
    cells.check_requests(wanted, folder)
    if path.exists():
        return
    trace, settings = cells.settings_of(wanted, folder, name, "8B")
    ratios: list[dict[str, Any]] = []
    for setting, server in settings:
        for load in LOADS:
            day = at_rate(repeated(trace, setting["copies"]), load * setting["saturation"])
            for order in ORDERS:
                bundle = Bundle(order, order, prediction="histogram")
                stock = cells.numbers(day, server, bundle)
                tuned = cells.numbers(day, server, replace(bundle, plugin=PluginRules("self-tuned")))
                found = {metric: _ratio(tuned[metric], stock[metric]) for metric in METRICS}
                ratios.append({"memory": setting["memory"], "load": load, "order": order} | found)
    path.write_text(json.dumps(ratios, indent=1) + "\n", encoding="utf-8")


def table(traces: Sequence[str], folder: Path) -> str:
    """Geometric mean, smallest and largest ratio of each trace's cells, and of all."""
    lines = ["| trace | cells | " + " | ".join(TITLES) + " |", "|---|" + "---:|" * (len(METRICS) + 1)]
    every: list[dict[str, Any]] = []
    for trace in traces:
        found = json.loads((folder / f"{trace}-self-tuned.json").read_text(encoding="utf-8"))
        every += found
        lines.append(_line(trace, found))
    return "\n".join([*lines, _line("**all**", every)])


def _line(title: str, found: Sequence[dict[str, Any]]) -> str:
    spreads = [_spread([cell[metric] for cell in found if cell[metric] is not None]) for metric in METRICS]
    return f"| {title} | {len(found)} | {' | '.join(spreads)} |"


def _spread(ratios: Sequence[float]) -> str:
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    return f"{mean:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _ratio(tuned: float | int | None, stock: float | int | None) -> float | None:
    return tuned / stock if tuned and stock else None


if __name__ == "__main__":
    sys.exit(main())
