"""Prefill budget and displacement on recorded traces, simulated: each beside the same engine without it.

    HEADWAY_TRACES=FOLDER python -m benchmarks.studies.vllm.step_budget_cells --out CELLS [--page docs/results/vllm.md]

Settings (traces, memory, saturation) are those of the regret table of priced-work, with fewer requests; a setting that
the folder CELLS holds already is not measured again. P-PAS is there as published: 2,048 prompt tokens a step while two
prompts or more are pending, waiting ones included, and something decodes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.page_tables import show
from benchmarks.studies.priced_work import regret_cells as cells
from benchmarks.studies.vllm.cell_options import cell_options
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.saturation import at_rate, repeated
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import summarise
from headway.bench.user_mistake import UserMistake
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.prefill_budget import StepLimits
from headway.scheduling.scheduler import Scheduler
from headway.simulator.outcome import NEVER, DayOutcome
from headway.simulator.plugin_control import Inside, PluginControl
from headway.simulator.replica import Replica
from headway.simulator.rules import PluginRules
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace

LOADS = (0.9, 1.1)
ORDER = "highest-response-ratio"
PPAS_TOKENS = 2_048
BUDGETS: Mapping[str, PluginRules] = {
    "100 ms": PluginRules("prefill-budget", tpot_seconds=0.1),
    "50 ms": PluginRules("prefill-budget", tpot_seconds=0.05),
    "25 ms": PluginRules("prefill-budget", tpot_seconds=0.025),
    "P-PAS as published": PluginRules("prefill-budget"),
}
FIXED_TOKENS = (2_048, 512)
MEASURES = ("itl_p99", "tpot_p99", "ttft_mean", "ttft_p99", "e2e_mean")
TITLES = ("p99 ITL", "p99 TPOT", "mean TTFT", "p99 TTFT", "mean end-to-end")
URGENT_SHARE = 0.1
SIDES = ("urgent_mean", "urgent_p99", "others_mean", "others_p99", "e2e_mean")
SIDE_TITLES = ("urgent mean TTFT", "urgent p99 TTFT", "others' mean TTFT", "others' p99 TTFT", "mean end-to-end")


def main() -> int:
    typed = cell_options(__doc__, long_requests=400)
    try:
        found = [
            measure(trace, typed.long_requests if trace in cells.LONG else typed.requests, typed.out)
            for trace in typed.traces
        ]
    except UserMistake as mistake:
        print(mistake, file=sys.stderr)
        return 2
    show({"prefill-budget": budget_table(found), "displacement": displacement_table(found)}, typed.page)
    return 0


def measure(name: str, requests: int, folder: Path) -> dict[str, Any]:
    """All cells of a trace, from the folder where it has them."""
    path = folder / f"{name}-step-budget.json"
    wanted = cells.Wanted(traces=[name], replicas=["8B"], loads=LOADS, requests=requests)
    cells.check_requests(wanted, folder)
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    trace, settings = cells.settings_of(wanted, folder, name, "8B")
    found: dict[str, Any] = {"trace": name, "budgets": [], "displacement": []}
    for setting, server in settings:
        for load in LOADS:
            day = at_rate(repeated(trace, setting["copies"]), load * setting["saturation"])
            if setting["memory"] == "ample":
                found["budgets"].append({"load": load} | budgets(day, server))
            else:
                found["displacement"].append({"load": load} | displacement(day, server))
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def budgets(day: Trace, server: Replica) -> dict[str, Any]:
    """The measures under the default order, for each budget."""
    bundle = Bundle(ORDER, ORDER, prediction="histogram")
    found = {"fixed": measures(day, server, bundle)}
    for tokens in FIXED_TOKENS:
        seats = min(tokens, server.rules.max_num_seqs)
        smaller = replace(server, rules=replace(server.rules, max_num_batched_tokens=tokens, max_num_seqs=seats))
        found[f"fixed {tokens:,}"] = measures(day, smaller, bundle)
    for label, plugin in BUDGETS.items():
        chosen = replace(bundle, plugin=plugin)
        if label.startswith("P-PAS"):
            with patch.object(PluginControl, "_prefill_limits", published):
                found[label] = measures(day, server, chosen)
        else:
            found[label] = measures(day, server, chosen)
    return found


def published(self: PluginControl, scheduler: Scheduler, now: float, inside: Inside) -> StepLimits:
    """P-PAS's own rule, in place of ours."""
    pending = len(inside.prefill_left) + len(scheduler.queue)
    own = self._own
    if pending < 2 or not inside.decodes:
        return own
    return own._replace(token_budget=min(own.token_budget, inside.decodes + PPAS_TOKENS))


def measures(day: Trace, server: Replica, bundle: Bundle) -> dict[str, float | None]:
    told = summarise(
        day, simulate_bundle(day, server, bundle, cells.SEED), cells.SLO, None, kv_blocks=server.rules.kv_blocks
    )
    return {
        "itl_p99": told.itl_seconds.p99,
        "tpot_p99": told.tpot_seconds.p99,
        "ttft_mean": told.ttft_seconds.mean,
        "ttft_p99": told.ttft_seconds.p99,
        "e2e_mean": told.e2e_seconds.mean,
    }


def displacement(day: Trace, server: Replica) -> dict[str, Any]:
    """One request in ten is urgent; the order is by priority, and displacement off and on."""
    urgent = np.random.default_rng(cells.SEED).random(len(day)) < URGENT_SHARE
    day = replace(day, priority=np.where(urgent, 0, 1))
    bundle = Bundle("priority", "priority", preemption="lowest-priority", prediction="histogram")
    found = {}
    for label, rules in (("off", None), ("on", DisplaceRules())):
        chosen = replace(bundle, plugin=PluginRules(displace=rules))
        outcome = simulate_bundle(day, server, chosen, cells.SEED)
        found[label] = sides(outcome, urgent)
    return found


def sides(outcome: DayOutcome, urgent: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, float]:
    came = outcome.first_token_ps != NEVER
    ttft = (outcome.first_token_ps - outcome.arrived_ps) / PS_PER_SECOND
    e2e = (outcome.ended_ps - outcome.arrived_ps) / PS_PER_SECOND
    both = {"urgent": ttft[came & urgent], "others": ttft[came & ~urgent]}
    told = {f"{side}_mean": float(waits.mean()) for side, waits in both.items()}
    told |= {f"{side}_p99": float(np.quantile(waits, 0.99)) for side, waits in both.items()}
    return told | {"e2e_mean": float(e2e[came].mean()), "preemptions": float(outcome.preemptions.sum())}


def budget_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Seconds of the fixed budget, then ratios to it: geometric mean (smallest to largest) over the traces."""
    lines = ["| load | budget of a step | " + " | ".join(TITLES) + " |", "|---|---|" + "---:|" * len(TITLES)]
    for load in LOADS:
        of_load = [cell for one in found for cell in one["budgets"] if cell["load"] == load]
        for label in of_load[0]:
            if label not in ("load", "fixed"):
                ratios = [_spread([cell[label][name] / cell["fixed"][name] for cell in of_load]) for name in MEASURES]
                lines.append(f"| {load} | {label} | {' | '.join(ratios)} |")
        shown = [f"{_middle([cell['fixed'][name] for cell in of_load]):.3g} s" for name in MEASURES]
        lines.append(f"| {load} | 8,192 tokens, median | {' | '.join(shown)} |")
    return "\n".join(lines)


def displacement_table(found: Sequence[Mapping[str, Any]]) -> str:
    """Ratios of on to off of each trace, and preemptions of both."""
    lines = ["| trace | load | " + " | ".join(SIDE_TITLES) + " | preemptions |", "|---|---|" + "---:|" * 6]
    every: list[list[float]] = []
    for one in found:
        for cell in one["displacement"]:
            off, on = cell["off"], cell["on"]
            ratios = [on[name] / off[name] for name in SIDES]
            every.append(ratios)
            numbers = " | ".join(f"{ratio:.2f}" for ratio in ratios)
            preemptions = f"{off['preemptions']:,.0f} → {on['preemptions']:,.0f}"
            lines.append(f"| {one['trace']} | {cell['load']} | {numbers} | {preemptions} |")
    columns = [_spread(list(column)) for column in zip(*every, strict=True)]
    lines.append(f"| **all** | | {' | '.join(columns)} | |")
    return "\n".join(lines)


def _spread(ratios: Sequence[float]) -> str:
    mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
    return f"{mean:.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def _middle(values: Sequence[float]) -> float:
    return float(np.median(np.array(values)))


if __name__ == "__main__":
    sys.exit(main())
