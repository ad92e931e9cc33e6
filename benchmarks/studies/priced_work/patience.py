"""How `priced-work` does against the default order with other patiences, over the cells of the regret table.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.priced_work.regret --out CELLS --traces train --quick
    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.priced_work.patience CELLS --traces train

CELLS holds HRRN's days, and what load 1 is in each setting. The order is measured anew with each patience, on the
same days. Only queueing cells count. The docs are docs/decisions/default-order.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean

from benchmarks.studies.priced_work.regret_cells import HALVES, REPLICAS, Wanted, numbers, read_all
from benchmarks.studies.priced_work.regret_judging import HRRN, Cell, judged
from benchmarks.studies.priced_work.regret_tables import head, row
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import at_rate
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head as first_requests
from headway.bench.traces.reshaping import repeated
from headway.policies.ordering import priced_work
from headway.simulator.replica import replica

OURS = "priced-work"
PATIENCES = (1.1, 1.25, 1.5, 2.0)
METRICS = {
    "ttft_mean": "mean TTFT",
    "ttft_p99": "p99 TTFT",
    "ttft_large_prompts": "mean TTFT of the longest 5 %",
    "ttft_longest": "longest TTFT",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", type=Path, help="folder that the regret table filled")
    parser.add_argument("--traces", choices=list(HALVES), default="train")
    parser.add_argument("--patience", type=float, action="append", help="only this one; may be repeated")
    asked = parser.parse_args()
    settings = read_all(Wanted(traces=HALVES[asked.traces]), asked.cells)
    cells = [cell for cell in judged(settings, OURS) if not cell.calm]
    print("\n".join(head(["patience", "cells", *METRICS.values(), "better in mean and p99"])))
    for patience in asked.patience or PATIENCES:
        print(verdict(patience, [ratios(cell, patience) for cell in cells]), flush=True)
    return 0


def ratios(cell: Cell, patience: float) -> dict[str, float]:
    """The order with this patience ÷ HRRN, for each metric that both have."""
    setting = cell.setting
    card, model, gpus = REPLICAS[setting["replica"]]
    server = replica(card, model, tp=gpus, kv_tokens=setting["kv_tokens"])
    trace = first_requests(load_trace(setting["trace"]).trace, setting["requests"])
    day = at_rate(repeated(trace, setting["copies"]), cell.load * setting["saturation"])
    before, priced_work.PATIENCE = priced_work.PATIENCE, patience
    try:
        ours = numbers(day, server, Bundle(OURS, OURS, prediction="histogram"))
    finally:
        priced_work.PATIENCE = before
    theirs = cell.rows[HRRN]
    return {metric: ours[metric] / theirs[metric] for metric in METRICS if ours[metric] and theirs[metric]}


def verdict(patience: float, found: Sequence[dict[str, float]]) -> str:
    """One line: geometric mean and (worst) of each metric."""
    told = []
    for metric in METRICS:
        column = [one[metric] for one in found if metric in one]
        told.append(f"{geometric_mean(column):.2f} ({max(column):.2f})")
    both = sum(one["ttft_mean"] < 1 and one["ttft_p99"] < 1 for one in found)
    return row([f"{patience:g}", str(len(found)), *told, f"{both} of {len(found)}"])


if __name__ == "__main__":
    sys.exit(main())
