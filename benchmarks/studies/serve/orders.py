"""Who waits how long: first come first served in the engines' own queues against ours in front of them, and `compare`.

    python -m benchmarks.studies.serve.orders simulated FOLDER              # two simulated replicas
    python -m benchmarks.studies.serve.orders vllm FOLDER --python PYTHON   # two vLLM servers on the CPU
    python -m benchmarks.studies.serve.orders report FOLDER

HEADWAY_TRACES names the folder of traces. Measures what FOLDER/KIND.json does not hold yet until `--minutes` are over,
repeats outermost, so that whatever else the machine does falls on all alike; call it again to go on. `report` prints
Markdown: measured, beside what `headway compare` says of one replica under every second request. Load is the share of
the saturation that `compare` measures, twice that of one replica. The first quarter of each run's requests is sent and
not counted: the gateway starts without knowing a limit or a length. `report --fleet` asks `compare --replicas 2`
instead.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from benchmarks.quiet_machine import Watch
from benchmarks.studies.serve.processes import gateway, simulated, vllms
from benchmarks.studies.step_times.real_engine import BLOCK_TOKENS, BLOCKS, BUDGET, CONTEXT, SEATS, calibrate
from benchmarks.studies.step_times.real_engine import traffic as designed
from headway.bench.calibration.openai_stream import Server
from headway.bench.calibration.probe_load import replay_on
from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.fleets import Fleet, equal_replicas, simulate_routing
from headway.bench.experiment.saturation import at_rate, measure_saturation, open_loop
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.experiment.unloaded import unloaded_seconds
from headway.bench.load_test.prompts import Prompts
from headway.bench.load_test.sending import Sender
from headway.bench.load_test.stream_client import KEPT_SECONDS, StreamClient
from headway.bench.metrics.run_metrics import RunMetrics, Slo, summarise
from headway.bench.traces.loading import load_trace
from headway.bench.traces.reshaping import head
from headway.bench.traces.writing import write_jsonl
from headway.simulator.calibration import calibrated_replica, read_calibration
from headway.simulator.fleet_router import Queueing
from headway.simulator.outcome import DayOutcome
from headway.simulator.replica import Replica, replica
from headway.simulator.trace import Trace

REPLICAS = 2
SIMULATED_SEATS, SIMULATED_MODEL = 16, "llama-3.1-70b"
LOADS = (0.9, 1.2)
COUNTED_FROM = 0.25  # of a run's requests
SLOS = {"simulated": Slo.parse("ttft=500ms,tpot=50ms"), "vllm": Slo.parse("ttft=1s,tpot=100ms")}
EVERYTHING_THROUGH = "max_requests = 100000\nprefill_tokens = 1000000000\nkv_tokens = 1000000000\n"
LONGEST_PROMPT, LONGEST_OUTPUT = 3_000, 256
HEAD = (
    "| traffic, load | order | TTFT, s | short half, s | longest 5 %, s | goodput, % | Jain | refused or failed |\n"
    "|---|---|---|---|---|---|---|---|"
)
FIGURES = ("ttft_seconds", "ttft_short_half_seconds", "ttft_longest_5pct_seconds")


@dataclass(frozen=True)
class Variant:
    """One way to serve: the gateway's settings; and the bundle, routing and queue that `compare` is asked about."""

    name: str
    policies: str
    replicas: str
    bundle: Bundle
    routing: str = "least-work"
    queue: Queueing = "gateway"


VARIANTS = (
    Variant(
        "FCFS in the engines' queues",
        '[policies]\nordering = "fcfs"\nrouting = "round-robin"\n',
        EVERYTHING_THROUGH,
        Bundle("fcfs"),
        "round-robin",
        "replicas",
    ),
    Variant(
        "highest-response-ratio in ours",
        "",
        "",
        Bundle("ours", "highest-response-ratio", prediction="histogram"),
    ),
    Variant(
        "smallest-volume-first in ours",
        '[policies]\nordering = "smallest-volume-first"\n',
        "",
        Bundle("svf", "smallest-volume-first", prediction="histogram"),
    ),
)


# Traffic


def servegen() -> Trace:
    """ServeGen's m_small as recorded, tenants and all; the few long ones cut to what the tiny engine can hold."""
    found = load_trace("servegen_m_small", requests=20_000).trace
    return _scaled(found, found.prompt_tokens, found.output_tokens, "servegen_m_small")


def coding_agents() -> Trace:
    """Weka's coding agents as a replica with their prefixes cached would see them: a tenth of the uncached tokens."""
    found = open_loop(load_trace("agentic_coding_weka", requests=4_000).trace)
    assert found.prefix_ids is not None
    known: set[int] = set()
    fresh = []
    for prompt, blocks in zip(found.prompt_tokens.tolist(), found.prefix_ids, strict=True):
        hits = next((at for at, block in enumerate(blocks) if block not in known), len(blocks))
        known.update(blocks)
        fresh.append(max(1, prompt - hits * found.prefix_block_tokens))
    session = found.session
    assert session is not None
    named = replace(found, tenant=session, tenants=tuple(f"agent {one}" for one in range(int(session.max()) + 1)))
    return _scaled(named, np.array(fresh) // 10 + 1, found.output_tokens // 8 + 1, "agentic_coding_weka, scaled")


TRAFFICS = {"servegen": servegen, "agents": coding_agents}


def _scaled(trace: Trace, prompt: npt.NDArray[np.int64], output: npt.NDArray[np.int64], name: str) -> Trace:
    output = np.minimum(output, LONGEST_OUTPUT)
    return Trace(
        name,
        trace.arrived_seconds,
        np.minimum(prompt, LONGEST_PROMPT),
        output,
        max_output_tokens=np.full(len(trace), LONGEST_OUTPUT),
        tenant=trace.tenant,
        tenants=trace.tenants,
    )


@dataclass(frozen=True)
class Cell:
    """One traffic at one load, on two replicas like `one`."""

    traffic: str
    load: float
    trace: Trace
    one: Replica
    rate: float


def cells(one: Replica, seconds: float) -> Iterator[Cell]:
    """Every traffic at every load, as long as is to be measured with what is not counted before it."""
    for name, made in TRAFFICS.items():
        whole = made()
        sample = head(whole, 3_000)
        found = measure_saturation(sample, lambda day: simulate_bundle(day, one, Bundle("fcfs"), 0))
        for load in LOADS:
            rate = load * REPLICAS * found.requests_per_second
            part = head(whole, round(rate * seconds / (1 - COUNTED_FROM)))
            yield Cell(name, load, at_rate(part, rate), one, rate)


# Measuring


async def sent(url: str, model: str, trace: Trace, seed: int, *, is_simulated: bool) -> tuple[Trace, DayOutcome]:
    """The trace through the gateway, as clients see it. A seed a run, or a run would find the prompts of the last one
    in the engines' prefix caches."""
    prompts = Prompts(trace, model, seed, simulated=is_simulated)
    return await Sender(StreamClient(url, kept_seconds=KEPT_SECONDS), trace, prompts).run()


def counted(cell: Cell, trace: Trace, outcome: DayOutcome, slo: Slo) -> RunMetrics:
    """The figures of a run without its first requests."""
    kept = np.arange(round(COUNTED_FROM * len(trace)), len(trace))
    columns = {one.name: getattr(outcome, one.name) for one in fields(DayOutcome)}
    rows = {name: value[kept] for name, value in columns.items() if isinstance(value, np.ndarray) and name != "gaps"}
    first = int(kept[0])
    refused, failed = (
        {row - first: why for row, why in lost.items() if row >= first} for lost in (outcome.refused, outcome.failed)
    )
    tenant = None if trace.tenant is None else trace.tenant[kept]
    part = Trace(
        trace.name, trace.arrived_seconds[kept], trace.prompt_tokens[kept], trace.output_tokens[kept],
        tenant=tenant, tenants=trace.tenants,
    )  # fmt: skip
    alone = unloaded_seconds(part, cell.one.rules, cell.one.step_time)
    outcome = replace(outcome, **rows, refused=refused, failed=failed)
    return summarise(part, outcome, slo, alone, kv_blocks=cell.one.rules.kv_blocks)


def measure(kind: str, folder: Path, urls: Sequence[str], model: str, one: Replica, typed: argparse.Namespace) -> None:
    """Whatever is missing in the file of this kind, until time is up."""
    file = folder / f"{kind}.json"
    done = json.loads(file.read_text()) if file.exists() else []
    until = time.monotonic() + 60 * typed.minutes
    todo = list(cells(one, typed.seconds))
    for repeat in range(typed.repeats):
        for cell in todo:
            for variant in VARIANTS:
                key = {"traffic": cell.traffic, "load": cell.load, "variant": variant.name, "repeat": repeat}
                if any(key.items() <= run.items() for run in done):
                    continue
                if time.monotonic() + 1.5 * typed.seconds > until:
                    return
                with gateway(urls, variant.policies, variant.replicas) as gate, _loop() as runner:
                    watch = Watch([os.getpid()])
                    sending = sent(gate.url, model, cell.trace, len(done), is_simulated=kind == "simulated")
                    trace, outcome = runner.run(sending)
                    others = watch.others_share()
                    seats = [one["requests_max"] for one in gate.state()["replicas"]]
                found = counted(cell, trace, outcome, SLOS[kind])
                facts = {"rate": cell.rate, "seats": seats, "others_share": others, "metrics": found.to_json()}
                done.append(key | facts)
                file.write_text(json.dumps(done))
                print(key, f"{found.ttft_seconds.mean:.3f} s, others {100 * others:.0f} %", seats, flush=True)


def _loop() -> asyncio.Runner:
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def prepare(urls: Sequence[str], folder: Path) -> Replica:
    """One of the servers, as `headway calibrate` sees it while both are busy; measured once, then read from FOLDER."""
    file = folder / "c.toml"
    if not file.exists():

        async def both() -> None:
            days = [designed(150, 12.0, seed=11 + at) for at in range(REPLICAS)]
            servers = [Server(url) for url in urls]
            pairs = zip(servers, days, strict=True)
            first, _ = await asyncio.gather(*(replay_on(server, "tiny", day, 0, "fcfs") for server, day in pairs))
            write_jsonl(first.as_trace(), folder / "fcfs.jsonl")

        asyncio.run(both())
        calibrate(str(folder / "fcfs.jsonl"), folder, [])
    return calibrated_replica(read_calibration(file))


def modelled() -> Replica:
    """One of the simulated replicas."""
    return replica(model=SIMULATED_MODEL, max_num_seqs=SIMULATED_SEATS)


@contextmanager
def replicas(kind: str, folder: Path, python: str | None) -> Iterator[tuple[list[str], str, Replica]]:
    """URLs, the model's name there, and what one of them is to the simulator."""
    if kind == "simulated":
        with simulated(REPLICAS, SIMULATED_SEATS, SIMULATED_MODEL) as urls:
            yield urls, SIMULATED_MODEL, modelled()
        return
    if python is None:
        raise SystemExit("--python is missing: name the Python of an environment with vLLM for CPU")
    options = {
        "max-model-len": CONTEXT,
        "max-num-seqs": SEATS,
        "max-num-batched-tokens": BUDGET,
        "num-gpu-blocks-override": BLOCKS + 1,
        "block-size": BLOCK_TOKENS,
    }
    with vllms(python, folder, REPLICAS, options) as urls:
        yield urls, "tiny", prepare(urls, folder)


# Telling


def foreseen(cell: Cell, variant: Variant, slo: Slo) -> RunMetrics:
    """What `compare` says: each replica with every second request and the order in its own queue."""
    trace, total = cell.trace, len(cell.trace)
    halves = []
    for first in range(REPLICAS):
        own = np.arange(first, total, REPLICAS)
        day = Trace(
            trace.name, trace.arrived_seconds[own], trace.prompt_tokens[own], trace.output_tokens[own],
            None if trace.max_output_tokens is None else trace.max_output_tokens[own],
        )  # fmt: skip
        halves.append((own, simulate_bundle(day, cell.one, variant.bundle, 0)))
    columns = {}
    for one in fields(DayOutcome):
        if isinstance(getattr(halves[0][1], one.name), np.ndarray) and one.name != "gaps":
            columns[one.name] = np.empty(total, np.int64)
            for own, outcome in halves:
                columns[one.name][own] = getattr(outcome, one.name)
    refused = {int(own[row]): why for own, outcome in halves for row, why in outcome.refused.items()}
    return counted(cell, trace, replace(halves[0][1], **columns, refused=refused), slo)


def foreseen_of_fleet(cell: Cell, variant: Variant, slo: Slo) -> RunMetrics:
    """What `compare --replicas 2` says: the order in one queue in front, or requests pushed to the replicas' queues."""
    fleet = Fleet(equal_replicas(cell.one, REPLICAS), queue=variant.queue)
    outcome = simulate_routing(cell.trace, fleet, variant.routing, variant.bundle, 0)
    return counted(cell, cell.trace, outcome.day, slo)


def report(
    kind: str, folder: Path, one: Replica, seconds: float, told_by: Callable[[Cell, Variant, Slo], RunMetrics]
) -> None:
    """One table, and how far off the prediction was."""
    done = json.loads((folder / f"{kind}.json").read_text())
    errors, same = [], 0
    print(f"\n{HEAD}")
    for cell in cells(one, seconds):
        place = f"{cell.traffic}, {cell.load:g} ({cell.rate:.1f}/s)"
        ttft: list[tuple[float, float]] = []
        for variant in VARIANTS:
            key = {"traffic": cell.traffic, "load": cell.load, "variant": variant.name}
            runs = [run["metrics"] for run in done if key.items() <= run.items()]
            if not runs:
                continue
            told = told_by(cell, variant, SLOS[kind]).to_json()
            print(f"| {place} | {variant.name} | {' | '.join(_figures(runs, told))} |")
            ttft.append((_mean(runs, "ttft_seconds"), _mean([told], "ttft_seconds")))
        for real, said in ttft[1:]:
            ratios = real / ttft[0][0], said / ttft[0][1]
            errors.append(abs(np.log(ratios[1] / ratios[0])))
            same += (ratios[0] < 1) == (ratios[1] < 1)
    shares = [100 * run["others_share"] for run in done]
    print(f"\nOthers used {min(shares):.0f} to {max(shares):.0f} % of the machine during a run.")
    if errors:
        typical = np.exp(float(np.mean(errors)))
        print(f"Both agree in {same} of {len(errors)} cases on who is faster than FCFS.")
        print(f"The ratio to FCFS is off by a factor of {typical:.2f} (geometric mean).")


def _mean(rows: Sequence[Any], name: str) -> float:
    return float(np.mean([row[name]["mean"] if isinstance(row[name], dict) else row[name] for row in rows]))


def _figures(runs: Sequence[Any], told: Any) -> Iterator[str]:
    """Measured, of several repeats the least and the most, and in brackets as foreseen."""
    for name, times in (*((name, 1) for name in FIGURES), ("goodput", 100), ("jain_index", 1)):
        own = sorted(times * _mean([run], name) for run in runs)
        yield " – ".join(f"{one:.3g}" for one in ([own[0], own[-1]] if len(own) > 1 else own)) + (
            f" ({times * _mean([told], name):.3g})"
        )
    yield str(sum(run["refused"] + run.get("failed", 0) for run in runs))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("simulated", "vllm", "report"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", help="of an environment with vLLM for CPU")
    parser.add_argument("--seconds", type=float, default=30.0, help="counted, of each run")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--fleet", action="store_true", help="report beside what a simulated fleet of two says")
    typed = parser.parse_args()
    if "HEADWAY_TRACES" not in os.environ:
        raise SystemExit("HEADWAY_TRACES is not set: name the folder of traces")
    typed.folder.mkdir(parents=True, exist_ok=True)
    if typed.what != "report":
        with replicas(typed.what, typed.folder, typed.python) as (urls, model, one):
            measure(typed.what, typed.folder, urls, model, one, typed)
        return 0
    told_by = foreseen_of_fleet if typed.fleet else foreseen
    if (typed.folder / "simulated.json").exists():
        report("simulated", typed.folder, modelled(), typed.seconds, told_by)
    if (typed.folder / "vllm.json").exists():
        one = calibrated_replica(read_calibration(typed.folder / "c.toml"))
        report("vllm", typed.folder, one, typed.seconds, told_by)
    return 0


if __name__ == "__main__":
    sys.exit(main())
