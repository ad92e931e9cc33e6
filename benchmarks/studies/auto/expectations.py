"""What to expect of an order: the table of `src/headway/twin/order_prior.py`, from the whole days of the training half.

    python -m benchmarks.studies.auto.expectations FOLDER [--traces TRACES]

FOLDER keeps the days of `measure.py`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.studies.auto.days import DEFAULT, REQUESTS, fixed_times, make_day
from benchmarks.studies.auto.measure import judged
from headway.bench.recommendation.objective import read_objective
from headway.config.wanted_objective import MEASURES

MISSED_LEAST = 1e-3  # one request in a thousand more or less is no factor of ten


def main() -> None:
    """Print a line for each order: the means of the logarithms, and behind them their standard deviations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--traces", type=Path, default=Path("../shared/traces"), help="folder of the traces")
    given = parser.parse_args()
    days = []
    for name in REQUESTS["training"]:
        day = make_day(given.traces, name)
        fixed = fixed_times(day, given.folder / f"{name}.npz")
        _, measures = judged(read_objective("balanced", day.slo), list(fixed.values()))
        values = np.array([[max(one[measure], _least(measure)) for measure in MEASURES] for one in measures])
        days.append(np.log(values / values[list(fixed).index(DEFAULT.ordering)]))
    print(f"# {', '.join(MEASURES)}; {len(days)} days")
    for label, each in zip(fixed, np.moveaxis(np.array(days), 1, 0), strict=True):
        print(label, each.mean(axis=0).round(2).tolist(), "#", each.std(axis=0).round(2).tolist())


def _least(measure: str) -> float:
    return MISSED_LEAST if measure == "missed" else 1e-9


if __name__ == "__main__":
    main()
