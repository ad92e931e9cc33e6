"""What `headway compare` does once its options are read: traffic in, experiment, table and files out."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle, named_bundles, read_bundles
from headway.bench.experiment.comparison import SCHEMA, Comparison
from headway.bench.experiment.saturation import is_closed_loop, open_loop
from headway.bench.experiment.simulated_runs import Experiment
from headway.bench.experiment.simulated_runs import compare as run_experiment
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files, replacing
from headway.bench.traces.loading import load_trace
from headway.bench.traces.opening import find_file
from headway.bench.traces.reshaping import check_context, head
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bench.workloads import WORKLOADS
from headway.cli.compare_options import (
    DEFAULT_HARDWARE,
    DEFAULT_MODEL,
    CompareOptions,
    Precision,
    PrefixCaching,
    parse_loads,
    whole_blocks,
)
from headway.cli.printing import print_rich
from headway.cli.progress import progress, say
from headway.simulator.calibration import calibrated_replica, read_calibration
from headway.simulator.replica import Replica, replica
from headway.simulator.rules import EngineRules
from headway.simulator.trace import Trace

DEFAULT_WORKLOAD = "chat-and-documents"
WORKLOAD_LOADS = (0.9,)  # unless a load is given: a generated rate means nothing on a replica it was not made for

DEFAULT_POLICIES = (
    "fcfs",
    "shortest-prompt-first",
    "shortest-job-first",
    "shortest-job-first-aging",
    "highest-response-ratio",
    "smallest-volume-first",
    "priced-work",
    "random",
)
BLOCK_TOKENS = EngineRules(kv_blocks=1).block_tokens
WITH_TENANTS = ("fair-share",)  # with one tenant it is fcfs
WITH_PREFIX_CACHE = ("shortest-uncached-prefill-first", "longest-prefix-match")  # without one they are orders above


def run_comparisons(options: CompareOptions) -> None:
    """Compare on each trace in turn; print a table each, write one JSON file and one report.

    Raises:
        UserMistake: an option, a name or a trace is wrong; before anything was simulated, wherever it can be known.
    """
    loads = parse_loads(options.load, options.loads)
    slo = Slo.parse(options.slo)
    check_outputs(options)
    named = chosen_bundles(options)
    comparisons = []
    for name in options.traces or [DEFAULT_WORKLOAD]:
        server, trace = prepare(name, options, slo)
        bundles = named or named_bundles(default_policies(trace, server), _template(options))
        own = WORKLOAD_LOADS if name in WORKLOADS and loads == (None,) else loads
        experiment = Experiment(trace, server, bundles, own, options.seed, slo)
        comparison = run_experiment(experiment, jobs=options.jobs, progress=progress, command=command_line())
        comparisons.append(comparison)
        if options.json != "-":
            show(comparison)
    write_outputs(options, comparisons)


def command_line() -> str:
    """What was typed, as one would type it again; bytes that are not UTF-8 are told by `?`."""
    return shlex.join(["headway", *sys.argv[1:]]).encode("utf-8", "replace").decode()


def check_outputs(options: CompareOptions) -> None:
    """Find out now whether the traces are there and the files can be written, not after the work."""
    numbers = None if options.json in (None, "-") else Path(options.json)
    check_files({"--json": numbers, "--report": options.report}, files_read(options))
    if options.report is not None and len(options.traces or []) > 1:
        raise UserMistake("--report holds one trace; give one trace, or run once for each")


def files_read(options: CompareOptions) -> list[str]:
    """Every file that the command line names to be read.

    Raises:
        UserMistake: a trace is not there.
    """
    traces = [find_file(name, tuple(WORKLOADS)) for name in options.traces or [] if name not in WORKLOADS]
    profiles = [name for name in (options.hardware, options.model) if name.endswith(".toml")]
    return [str(name) for name in (*traces, *profiles, options.bundles, options.calibration) if name is not None]


def chosen_bundles(options: CompareOptions) -> list[Bundle]:
    """The bundles that the command line names; empty where it names none."""
    template = _template(options)
    template.check()
    found = named_bundles(options.policy or [], template)
    if options.bundles is not None:
        found += read_bundles(options.bundles, template)
    return found


def default_policies(trace: Trace, server: Replica) -> list[str]:
    """The orders worth seeing side by side on this traffic."""
    wanted = list(DEFAULT_POLICIES)
    if len(trace.tenants) > 1:
        wanted += WITH_TENANTS
    if server.rules.prefix_caching:
        wanted += WITH_PREFIX_CACHE
    return wanted


def prepare(name: str, options: CompareOptions, slo: Slo) -> tuple[Replica, Trace]:
    """The replica and the traffic as it will be replayed, every change to it said on stderr."""
    loaded = load_trace(
        name,
        skip_bad_lines=options.skip_bad_lines,
        columns=options.columns,
        seed=options.seed,
        **({} if options.requests is None else {"requests": options.requests}),
    )
    trace = loaded.trace if options.requests is None else head(loaded.trace, options.requests)
    for note in loaded.notes:
        say(note)
    caches = _caches_prefixes(options.prefix_caching, trace)
    with as_mistakes():
        server = _server(options, caches)
    # Against the model's context only: what the model takes but this replica's memory cannot hold, it refuses itself.
    trace, notes = check_context(trace, server.rules.max_model_tokens, options.over_context.value, lines=loaded.lines)
    for note in notes:
        say(note)
    if options.open_loop and is_closed_loop(trace):
        trace = open_loop(trace)
    return server, with_deadlines(trace, slo)


def _server(options: CompareOptions, caches_prefixes: bool) -> Replica:
    """The replica: as calibrated, or of a card and a model."""
    if options.calibration is not None:
        return _calibrated(options, caches_prefixes)
    return replica(
        options.hardware,
        options.model,
        tp=options.tp,
        precision=options.precision.value,
        kv_tokens=options.kv_tokens,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        async_scheduling=options.async_scheduling,
        prefix_caching=caches_prefixes,
    )


def _calibrated(options: CompareOptions, caches_prefixes: bool) -> Replica:
    """The engine of the calibration file, under its limits but for those that the command line names."""
    assert options.calibration is not None
    named = (options.hardware, options.model, options.tp, options.precision)
    if named != (DEFAULT_HARDWARE, DEFAULT_MODEL, None, Precision.bf16):
        raise UserMistake(
            "--calibration says which card and model were measured; leave --hardware, --model, --tp, --precision out"
        )
    server = calibrated_replica(read_calibration(options.calibration))
    asked = {
        "kv_blocks": options.kv_tokens and whole_blocks(options.kv_tokens, server.rules.block_tokens),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "async_scheduling": options.async_scheduling,
        "prefix_caching": caches_prefixes,
    }
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    return replace(server, rules=replace(server.rules, **changes))


def _caches_prefixes(asked: PrefixCaching, trace: Trace) -> bool:
    """Whether the replica keeps prefixes: the trace has to say who shares them, in blocks that the replica's divide."""
    if asked is PrefixCaching.off:
        return False
    if trace.prefix_ids is None:
        if asked is PrefixCaching.on:
            raise UserMistake(
                f"--prefix-caching on: {trace.name} does not say which prompts share blocks (it has no hash_ids); "
                "use auto or off"
            )
        return False
    if trace.prefix_block_tokens % BLOCK_TOKENS:
        raise UserMistake(
            f"{trace.name}: its prefix blocks hold {trace.prefix_block_tokens} tokens, which is no multiple of the "
            f"replica's {BLOCK_TOKENS}; give --prefix-caching off"
        )
    return True


def with_deadlines(trace: Trace, slo: Slo) -> Trace:
    """A trace without deadlines gets the TTFT SLO as everybody's."""
    if trace.deadline_seconds is not None or slo.ttft_seconds is None:
        return trace
    return replace(trace, deadline_seconds=np.full(len(trace), slo.ttft_seconds))


def show(comparison: Comparison) -> None:
    """The table on stdout; the same bytes for the same seed."""
    from headway.bench.report.terminal_table import print_comparison

    print_rich(lambda console: print_comparison(comparison, console))


def write_outputs(options: CompareOptions, comparisons: list[Comparison]) -> None:
    """The JSON (one object, or a list under `comparisons` for several traces) and the report."""
    if options.json is not None:
        one = comparisons[0].to_json()
        several = {"schema": SCHEMA, "comparisons": [comparison.to_json() for comparison in comparisons]}
        content = one if len(comparisons) == 1 else several
        text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        if options.json == "-":
            sys.stdout.write(text)
        else:
            with replacing(Path(options.json), "--json") as temporary:
                temporary.write_text(text, encoding="utf-8")
            say(f"numbers: {options.json}")
    if options.report is not None:
        from headway.bench.report.html_report import write_report

        with replacing(options.report, "--report") as temporary:
            write_report(comparisons[0], temporary)
        say(f"report: {options.report}")
    else:
        say("--report FILE.html draws it: TTFT by length class, the queue and KV memory over time")


def _template(options: CompareOptions) -> Bundle:
    return Bundle("fcfs", admission=options.admission, preemption=options.preemption, prediction=options.prediction)
