"""How often the intervals of `headway compare --repeats` hold the truth, and how often policies are told apart wrongly.

    python -m benchmarks.studies.compare.error_bars OUT.json [SEEDS] [REQUESTS]

The truth is the mean over all seeds of a workload, at one rate. Groups of a few of these seeds are judged as
`--repeats` judges them; the days of single seeds are judged by their blocks, as a recorded trace would be. Two runs of
`random` with other draws are the same policy: what tells them apart is wrong.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.repeats import Blocks
from headway.bench.experiment.saturation import measure_saturation
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.mean_metrics import mean_metrics
from headway.bench.metrics.run_metrics import RunMetrics, Slo, summarise
from headway.bench.metrics.samples import Samples, not_worse, over_blocks, over_seeds
from headway.bench.workloads import WORKLOADS
from headway.simulator.replica import replica

WORKLOAD, LOADS = "chat-and-documents", (0.7, 0.9)
ROWS = (
    ("fcfs", 0),
    ("shortest-prompt-first", 0),
    ("random", 0),
    ("random", 1000),
)  # ordering, what is added to its seed
NUMBERS = ("ttft_seconds.mean", "ttft_seconds.p99", "e2e_seconds.mean", "goodput")
GROUPS, SIZES, BLOCKS = 200, (3, 5, 10), (10,)
SLO = Slo.parse("ttft=2s,tpot=100ms")


def main(out: Path, seeds: int, requests: int) -> None:
    server = replica("h100", "llama-3.1-8b")
    first = WORKLOADS[WORKLOAD].generate(requests, 0)
    one = measure_saturation(first, lambda trace: simulate_bundle(trace, server, Bundle("fcfs"), 0))
    found: list[dict[str, Any]] = []
    for load in LOADS:
        days: list[list[RunMetrics]] = []
        of_blocks: list[dict[int, list[Samples]]] = []
        short: dict[int, list[bool]] = {count: [] for count in BLOCKS}
        for seed in range(seeds):
            trace = one.at_load(WORKLOADS[WORKLOAD].generate(requests, seed), load)
            outcomes = [simulate_bundle(trace, server, Bundle(name, ordering=name), seed + more) for name, more in ROWS]
            days.append([summarise(trace, day, SLO, None, kv_blocks=server.rules.kv_blocks) for day in outcomes])
            of_blocks.append(
                {
                    count: [over_blocks(trace, day, SLO, None, blocks=count, seed=0) for day in outcomes]
                    for count in BLOCKS
                }
            )
            longest = max(run.longest_ttft_seconds or 0.0 for run in days[-1])
            for count in BLOCKS:
                short[count].append(Blocks.of(trace, count, longest).is_short)
            print(f"load {load:g}: seed {seed + 1} of {seeds}", file=sys.stderr, flush=True)
        truth = [mean_metrics([day[row] for day in days]) for row in range(len(ROWS))]
        random = np.random.default_rng(0)
        for size in SIZES:
            judged = []
            for _ in range(GROUPS):
                group = random.choice(seeds, size, replace=False)
                runs = [[days[seed][row] for seed in group] for row in range(len(ROWS))]
                judged.append([over_seeds(of_one, mean_metrics(of_one), 0) for of_one in runs])
            found.append({"load": load, "kind": "seeds", "count": size, **judge(judged, truth)})
        for count in BLOCKS:
            for is_short in (False, True):
                kept = [of_blocks[seed][count] for seed in range(seeds) if short[count][seed] == is_short]
                if kept:
                    told = judge(kept, truth)
                    found.append({"load": load, "kind": "blocks", "count": count, "is_short": is_short, **told})
        out.write_text(json.dumps(found, indent=1) + "\n")
    for row in found:
        print(json.dumps(row))


def judge(judged: Sequence[Sequence[Samples]], truth: Sequence[RunMetrics]) -> dict[str, Any]:
    """Shares of the judgements in which an interval holds the truth, and in which policies are told apart."""
    held = {
        name: {
            f"{label} {number}": share(judged, lambda one, row=row, name=name: _holds(one[row], truth[row], name))
            for row, label, number in ((0, "fcfs", ""), (1, "spf", ""))
        }
        for name in NUMBERS
    }
    apart = {name: share(judged, lambda one, name=name: _apart(one[0], one[1], name)) for name in NUMBERS}
    wrongly = {name: share(judged, lambda one, name=name: _apart(one[2], one[3], name)) for name in NUMBERS}
    return {"days": len(judged), "held": held, "fcfs_and_spf_apart": apart, "random_and_random_apart": wrongly}


def share(judged: Sequence[Sequence[Samples]], is_so: Callable[..., bool]) -> float:
    return float(np.mean([is_so(one) for one in judged]))


def _holds(samples: Samples, truth: RunMetrics, name: str) -> bool:
    key, _, part = name.partition(".")
    number = getattr(truth, key)
    number = getattr(number, part) if part else number
    interval = samples.interval(name)
    return interval is not None and interval.low <= number <= interval.high


def _apart(one: Samples, other: Samples, name: str) -> bool:
    """Whether one of two is said to be behind the other."""
    told = [samples.told[name] for samples in (one, other)]
    return not (not_worse(told, 0)[1] and not_worse(told, 1)[0])


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 40,
        int(sys.argv[3]) if len(sys.argv) > 3 else 2000,
    )
