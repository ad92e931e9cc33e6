"""Measure admission, prediction and preemption on real traces: run with HEADWAY_TRACES set to a folder.

Writes docs/results/admission.md. `--jobs` processes (all cores); some ten minutes on two cores. `--quick` prints only
the tables at load 1.1, memory tightest and amplest, without the policies that take longest to simulate. Another seed or
trace folder gives other numbers; the same give the same.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.studies.admission.page import Point, Study, page, tables
from headway.bench.experiment.parallel import spread
from headway.bench.experiment.saturation import at_rate, measure_saturation, open_loop
from headway.bench.metrics.prediction_quality import CalibrationListener, PredictionCalibration, Verdict, summary
from headway.bench.metrics.run_metrics import Slo, summarise
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head
from headway.scheduling.bundle import bundle
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.skipping import simulate
from headway.simulator.trace import Trace

PAGE = Path(__file__).parents[3] / "docs" / "results" / "admission.md"

TRACES = {  # name: how many of its requests
    "azure_conv_2023": 2_000,
    "azure_code_2023": 2_000,
    "lengths_sharegpt_8k": 2_000,
    "servegen_m_large": 2_000,
    "servegen_deepseek_r1": 1_500,
    "mooncake_conversation": 1_000,
}
SQUEEZES = (1.2, 1.5, 3.0)
LOADS = (0.9, 1.1)
LARGEST_SHARE = 0.5  # of the tightest memory: larger requests are left out
SLO = Slo(ttft_seconds=5.0, tpot_seconds=0.2)
LONGEST_OUTPUT = 32_768  # what an operator of the longest of these traces would have to declare

ADMISSION: dict[str, dict[str, Any]] = {
    "greedy": {},
    "watermark 0.05": {"watermark": 0.05},
    "reserve-max": {"admission": "reserve-max"},
    "past-future": {"admission": "past-future", "prediction": "past-future"},
    "overflow-probability": {"admission": "overflow-probability", "prediction": "histogram"},
    "overflow-probability, our victim": {
        "admission": "overflow-probability",
        "prediction": "histogram",
        "preemption": "smallest-remaining-benefit",
    },
    "oracle peak check": {"admission": "peak-check", "prediction": "oracle"},
}
MORE_ADMISSION: dict[str, dict[str, Any]] = {  # at the tightest memory and load 1.1 only
    "past-future, common draws": {"admission": "past-future-common-draws", "prediction": "past-future"},
    "peak check, mean of histogram": {"admission": "peak-check", "prediction": "histogram"},
    "overflow-probability, our victim, backfill": {
        "admission": "backfill/overflow-probability",
        "prediction": "histogram",
        "preemption": "smallest-remaining-benefit",
    },
    "overflow-probability, true lengths": {"admission": "overflow-probability", "prediction": "oracle"},
    "nested-wait": {"admission": "nested-wait"},
}
SLOW = ("reserve-max", "past-future")  # requests stay waiting for long, and each is asked about at every step
PREEMPTION = ("latest-admitted", "least-sunk-work", "smallest-remaining-benefit")
PREDICTION = ("running-mean", "past-future", "histogram", "conformal/histogram", "quantile-boosting", "one-bit")
ORDERS: dict[str, dict[str, Any]] = {
    "fcfs": {"ordering": "fcfs", "prediction": "histogram"},
    "true lengths": {"prediction": "oracle"},
    "histogram": {"prediction": "histogram"},
    "one-bit": {"prediction": "one-bit"},
    "quantile-boosting": {"prediction": "quantile-boosting"},
    "running-mean": {"prediction": "running-mean"},
    "noisy truth, σ 0.7": {"prediction": "oracle-noisy"},
}
SHIFT = ("servegen_m_large", "lengths_sharegpt_8k")  # from the first to the second in mid-run
WINDOW = 100  # completions over which coverage is taken after the shift


@dataclass(frozen=True)
class Setting:
    """One trace on one squeezed replica, and its saturation there."""

    trace: Trace
    server: Replica
    squeeze: float
    saturation: float
    left_out: int  # requests too large for the tightest memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--only", nargs="*", default=list(TRACES), help="names of traces, for a look; writes to stdout")
    parser.add_argument("--quick", action="store_true", help="the tables of admission and victims at load 1.1 alone")
    asked = parser.parse_args()
    if not os.environ.get("HEADWAY_TRACES"):
        sys.exit("HEADWAY_TRACES names no folder; the page is measured on the traces listed in docs/public-traces.md")
    if asked.quick:
        print(quick(asked.only, asked.jobs))
        return
    settings = [setting for each in spread(settings_of, asked.only, jobs=asked.jobs) for setting in each]
    tasks = admission_tasks(settings) + order_tasks(settings) + prediction_tasks(settings)
    points = spread(lambda task: task(), tasks, jobs=asked.jobs)
    shifts = spread(shifted, ["histogram", "conformal/histogram", "past-future"], jobs=asked.jobs)
    study = Study(points, dict(shifts), SLO, TRACES, WINDOW, SHIFT)
    text = page(study)
    if asked.only == list(TRACES):
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)


def quick(names: list[str], jobs: int | None) -> str:
    """The tables of admission and of victims, tightest and amplest memory, load 1.1, no slow policy."""
    settings = [one for each in spread(settings_of, names, jobs=jobs) for one in each if one.squeeze != SQUEEZES[1]]
    tasks = [
        task("admission", setting, LOADS[-1], label, chosen)
        for setting in settings
        for label, chosen in ADMISSION.items()
        if label not in SLOW
    ]
    tasks += [
        task("preemption", setting, LOADS[-1], name, {"preemption": name, "prediction": "histogram"})
        for setting in settings
        if setting.squeeze == SQUEEZES[0]
        for name in PREEMPTION
    ]
    return tables(Study(spread(lambda one: one(), tasks, jobs=jobs), {}, SLO, TRACES, WINDOW, SHIFT))


def settings_of(name: str) -> list[Setting]:
    """The trace on the whole replica, then squeezed to multiples of the memory it holds there on average."""
    trace = open_loop(head(load_trace(name).trace, TRACES[name]))
    whole = replica("h100", "llama-3.1-8b")
    demand = mean_demand(trace, whole)
    small = trace.prompt_tokens + trace.output_tokens <= SQUEEZES[0] * demand * LARGEST_SHARE
    trace = with_rows(trace, small)
    found = []
    for squeeze in SQUEEZES:
        server = replica("h100", "llama-3.1-8b", kv_tokens=int(squeeze * demand))
        found.append(Setting(trace, server, squeeze, saturation_of(trace, server), TRACES[name] - len(trace)))
    return found


def mean_demand(trace: Trace, server: Replica) -> float:
    """KV tokens held at load 0.9, on average over the later four fifths of arrivals."""
    trace = at_rate(trace, 0.9 * saturation_of(trace, server))
    outcome = live(trace, server)
    moments, blocks = np.array(outcome.curve_ps) * 1e-12, np.array(outcome.curve_blocks)
    since, until = np.quantile(trace.arrived_seconds, [0.2, 1.0])
    inside = (moments >= since) & (moments < until)
    spans = np.diff(moments, append=moments[-1])[inside]
    return float((blocks[inside] * spans).sum() / spans.sum()) * server.rules.block_tokens


def with_rows(trace: Trace, kept: np.ndarray[Any, np.dtype[np.bool_]]) -> Trace:
    """Only those requests."""
    rows = np.flatnonzero(kept)
    columns = (
        "arrived_seconds",
        "prompt_tokens",
        "output_tokens",
        "max_output_tokens",
        "tenant",
        "session",
    )
    taken = {name: None if getattr(trace, name) is None else getattr(trace, name)[rows] for name in columns}
    return replace(trace, **taken, priority=None, prefix_ids=None, deadline_seconds=None)


def saturation_of(trace: Trace, server: Replica) -> float:
    return measure_saturation(trace, lambda one: live(one, server)).requests_per_second


def live(
    trace: Trace,
    server: Replica,
    *,
    ordering: str = "fcfs",
    admission: str = "greedy",
    preemption: str = "latest-admitted",
    prediction: str = "running-mean",
    watermark: float = 0.0,
    listeners: tuple[Any, ...] = (),
) -> DayOutcome:
    """One simulated day."""
    options: dict[str, dict[str, Any]] = {}
    if prediction == "past-future":
        options["prediction"] = {"default_max_tokens": LONGEST_OUTPUT if trace.output_tokens.max() > 4_096 else 4_096}
    if admission == "reserve-max":
        options["admission"] = {"default_tokens": LONGEST_OUTPUT if trace.output_tokens.max() > 4_096 else 4_096}
    truth = trace.output_tokens.tolist()
    policies = bundle(
        ordering=ordering,
        admission=admission,
        preemption=preemption,
        prediction=prediction,
        options=options,
        costs=server.costs,
        seed=0,
        truth=truth.__getitem__,
    )
    return simulate(trace, replace(server.rules, watermark=watermark), server.step_time, policies, listeners=listeners)


def admission_tasks(settings: list[Setting]) -> list[Callable[[], Point]]:
    tasks = []
    for setting in settings:
        for load in LOADS:
            tight = setting.squeeze == SQUEEZES[0] and load == LOADS[-1]
            policies = {**ADMISSION, **(MORE_ADMISSION if tight else {})}
            for label, chosen in policies.items():
                tasks.append(task("admission", setting, load, label, chosen))
            if tight:
                victims = {name: {"preemption": name, "prediction": "histogram"} for name in PREEMPTION}
                tasks += [task("preemption", setting, load, name, chosen) for name, chosen in victims.items()]
    return tasks


def order_tasks(settings: list[Setting]) -> list[Callable[[], Point]]:
    """Smallest volume first at 1.5× and load 1.1 under greedy admission, as its paper deployed it."""
    tasks = []
    for setting in settings:
        if setting.squeeze == SQUEEZES[1]:
            with_classes = replace(setting, trace=as_tenants(setting.trace, real_classes(setting.trace)))
            for label, chosen in ORDERS.items():
                tasks.append(task("order", setting, 1.1, label, {"ordering": "smallest-volume-first"} | chosen))
            for label in ("histogram", "one-bit"):
                chosen = {"ordering": "smallest-volume-first", "prediction": label}
                tasks.append(task("order", with_classes, 1.1, f"{label} + classes", chosen))
    return tasks


def prediction_tasks(settings: list[Setting]) -> list[Callable[[], Point]]:
    tasks = []
    for setting in settings:
        if setting.squeeze == SQUEEZES[1]:
            tasks += [task("prediction", setting, 0.9, name, {"prediction": name}) for name in PREDICTION]
            with_classes = replace(setting, trace=as_tenants(setting.trace, real_classes(setting.trace)))
            tasks.append(task("prediction", with_classes, 0.9, "histogram + classes", {"prediction": "histogram"}))
    return tasks


def task(kind: str, setting: Setting, load: float, label: str, chosen: dict[str, Any]) -> Callable[[], Point]:
    def measure() -> Point:
        trace = at_rate(setting.trace, load * setting.saturation)
        calibration = CalibrationListener(len(trace))
        outcome = live(trace, setting.server, listeners=(calibration,), **chosen)
        metrics = summarise(trace, outcome, SLO, None, kv_blocks=setting.server.rules.kv_blocks)
        total = int((trace.prompt_tokens + trace.output_tokens).sum())
        return Point(
            kind,
            setting.trace.name,
            setting.squeeze,
            load,
            label,
            metrics,
            metrics.recomputed_tokens / total,
            calibration.result(),
            setting.server.rules.kv_blocks * setting.server.rules.block_tokens,
            setting.left_out,
        )

    return measure


def real_classes(trace: Trace) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What a real classifier would have said of each request: BERT's five classes, with BERT's errors.

    The file's rows in order of true length, matched by rank: a request as long among its trace as a row among its own
    gets that row's predicted class.
    """
    import gzip
    import json

    path = Path(os.environ["HEADWAY_TRACES"], "predictions_lmsys_output_length.jsonl.gz")
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    lots = np.random.default_rng(0)
    lengths = np.array([row["output_length"] for row in rows]) + lots.random(len(rows))
    classes = np.array([row["pred_class_5"] for row in rows])[np.argsort(lengths)]
    ranks = np.argsort(np.argsort(trace.output_tokens + lots.random(len(trace))))
    near = (ranks + lots.random(len(trace))) / len(trace) * len(rows)
    return classes[np.minimum(near.astype(np.int64), len(rows) - 1)].astype(np.int64)


def as_tenants(trace: Trace, classes: np.ndarray[Any, np.dtype[np.int64]]) -> Trace:
    """A class as part of the tenant, which is where a predictor sees it."""
    tenant = np.zeros(len(trace), dtype=np.int64) if trace.tenant is None else trace.tenant
    many = int(classes.max()) + 1
    names = tuple(f"{name}/{label}" for name in trace.tenants for label in range(many))
    return replace(trace, tenant=tenant * many + classes, tenants=names)


def shifted(prediction: str) -> tuple[str, tuple[PredictionCalibration, list[PredictionCalibration]]]:
    """Calibration before a change of traffic in mid-run, and in windows of completions after it."""
    first, second = (open_loop(head(load_trace(name).trace, 2_500)) for name in SHIFT)
    server = replica("h100", "llama-3.1-8b")
    joined = [at_rate(one, 0.8 * saturation_of(one, server)) for one in (first, second)]
    change = float(joined[0].arrived_seconds[-1])
    trace = Trace(
        name="shift",
        arrived_seconds=np.concatenate([joined[0].arrived_seconds, change + joined[1].arrived_seconds]),
        prompt_tokens=np.concatenate([one.prompt_tokens for one in joined]),
        output_tokens=np.concatenate([one.output_tokens for one in joined]),
    )
    listener = CalibrationListener(len(trace), sample=len(trace))
    live(trace, server, prediction=prediction, listeners=(listener,))
    before: list[Verdict] = []
    after: list[Verdict] = []
    for verdict in listener.verdicts:
        (before if verdict.arrived_at < change else after).append(verdict)
    told = summary(prediction, before[len(before) // 2 :])
    windows = [summary(prediction, after[at : at + WINDOW]) for at in range(0, len(after) - WINDOW + 1, WINDOW)]
    assert told is not None
    return prediction, (told, [window for window in windows if window is not None])


if __name__ == "__main__":
    main()
