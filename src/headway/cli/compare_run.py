"""Runs `headway compare`: traffic in, experiment, table and files out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from headway.bench.experiment.bundles import Bundle, named_bundles, read_bundles
from headway.bench.experiment.comparison import SCHEMA, Comparison
from headway.bench.experiment.default_orderings import default_orderings
from headway.bench.experiment.fleets import Fleet
from headway.bench.experiment.repeats import Repeats
from headway.bench.experiment.request_table import check_requests_file, write_requests
from headway.bench.experiment.simulated_runs import Experiment
from headway.bench.experiment.simulated_runs import compare as run_experiment
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files, replacing
from headway.bench.progress import progress, say
from headway.bench.recommendation.candidates import DEFAULT
from headway.bench.recommendation.objective import read_objective
from headway.bench.twin.virtual_day import AutoRun
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bench.workloads import WORKLOADS
from headway.cli.command_options import FleetOptions, OtherPolicies, ReplicaOptions
from headway.cli.comparison_options import ComparedOrderings, ComparisonOutputs, PluginOptions
from headway.cli.modelled_fleet import fleet_files, modelled_fleet
from headway.cli.modelled_replica import profile_files
from headway.cli.printing import print_rich
from headway.cli.result_files import STDOUT, command_line, json_file, write_json
from headway.cli.traffic import Traffic
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.prefill_budget import TPOT_SECONDS
from headway.simulator.rules import PluginRules
from headway.twin.auto_settings import AUTO, AutoSettings


def run_comparisons(
    traffic: Traffic,
    replica: ReplicaOptions,
    fleet: FleetOptions,
    orderings: ComparedOrderings,
    others: OtherPolicies,
    plugin: PluginOptions,
    outputs: ComparisonOutputs,
    *,
    slo: str,
    objective: str | None,
    repeats: int | None,
    jobs: int | None,
) -> None:
    """Compare on each trace in turn; print a table for each, write one JSON file and one report.

    Raises:
        UserMistake: an option, a name or a trace is wrong; wherever possible, before anything is simulated.
    """
    bounds = Slo.parse(slo)
    files_read = [*traffic.files(), *profile_files(replica), *fleet_files(fleet)]
    if orderings.bundles is not None:
        files_read.append(str(orderings.bundles))
    files = {"--report": outputs.report, "--requests-out": outputs.requests_out}
    check_files({"--json": json_file(outputs.json), **files}, files_read)
    if outputs.requests_out is not None:
        check_requests_file(outputs.requests_out, "--requests-out")
    for option, file in files.items():
        if file is not None and len(traffic.names) > 1:
            raise UserMistake(f"{option} holds one trace; give one trace, or run once for each")
    template = Bundle(
        "fcfs",
        admission=others.admission,
        preemption=others.preemption,
        prediction=others.prediction,
        plugin=_plugin_rules(plugin),
    )
    chosen = _chosen_bundles(orderings, template, _auto(orderings, template, objective, bounds))
    with as_mistakes():
        servers = modelled_fleet(fleet, replica)
    comparisons = []
    for name in traffic.names:
        loads = traffic.loads_of(name)
        server, trace = traffic.prepare(
            name, replica, bounds, None if servers is None else [*servers.replicas.values()]
        )
        bundles = chosen or named_bundles(default_orderings(trace, server, servers), template)
        experiment = Experiment(
            trace,
            server,
            bundles,
            loads,
            traffic.reading.seed,
            bounds,
            servers,
            keeps_requests=outputs.requests_out is not None,
            finds_own_load=True,
            repeats=_repeats(repeats, traffic, name, replica, bounds, servers),
        )
        comparison = run_experiment(experiment, jobs=jobs, progress=progress, command=command_line())
        comparisons.append(comparison)
        if outputs.json != STDOUT:
            show(comparison, outputs.format.value, brief=outputs.brief)
        _say_switches(comparison)
    _write(outputs, comparisons)


def _repeats(
    count: int | None, traffic: Traffic, name: str, replica: ReplicaOptions, slo: Slo, fleet: Fleet | None
) -> Repeats | None:
    """What to repeat: the seeds after the first of a workload, blocks of a file; None where nothing is."""
    if count is None:
        return None
    servers = None if fleet is None else [*fleet.replicas.values()]
    seeds = range(1, count) if name in WORKLOADS else ()
    return Repeats(count, [traffic.of_seed(seed).prepare(name, replica, slo, servers)[1] for seed in seeds])


def show(comparison: Comparison, form: Literal["text", "markdown", "csv"] = "text", *, brief: bool = False) -> None:
    """Print the table on stdout; the same bytes for the same seed."""
    from headway.bench.report.terminal_table import print_brief, print_comparison
    from headway.bench.report.written_table import csv_table, markdown_table

    if form == "text":
        draw = print_brief if brief else print_comparison
        print_rich(lambda console: draw(comparison, console))
    else:
        print(csv_table(comparison) if form == "csv" else markdown_table(comparison, brief=brief), end="")


def _plugin_rules(options: PluginOptions) -> PluginRules:
    """What the plug-in does. Raises UserMistake for a bound that nothing reads, or that is none."""
    bound = options.tpot_bound
    if bound is not None and options.tuning.value != "prefill-budget":
        raise UserMistake("--tpot-bound is read under --tuning prefill-budget only; add that, or leave it out")
    if bound is not None and not 0 < bound < float("inf"):
        raise UserMistake(f"--tpot-bound must be above 0 seconds, got {bound:g}")
    return PluginRules(
        options.tuning.value,
        HarmLimits() if options.guard else None,
        displace=DisplaceRules() if options.displace else None,
        tpot_seconds=TPOT_SECONDS if bound is None else bound,
    )


def _auto(orderings: ComparedOrderings, template: Bundle, objective: str | None, slo: Slo) -> Bundle | None:
    """The bundle that a twin begins with or returns to, where the command line names it."""
    if AUTO not in (orderings.ordering or []):
        if objective is not None:
            raise UserMistake(f"--objective is for the twin of --ordering {AUTO}; name that too, or leave it out")
        return None
    wanted = read_objective(objective or "balanced", slo)
    settings = AutoSettings(on=True, objective=wanted.name)
    return replace(template, label=AUTO, ordering=DEFAULT, twin=AutoRun(settings, wanted.slo.given()))


def _say_switches(comparison: Comparison) -> None:
    """On stderr, what each twin switched and why; all its looks are in the JSON."""
    for run in comparison.runs:
        for sentence in run.looks:
            if not sentence.partition(" s: ")[2].startswith("stays"):
                say(f"{run.policy}: {sentence}")


def _chosen_bundles(orderings: ComparedOrderings, template: Bundle, auto: Bundle | None) -> list[Bundle]:
    """The bundles that the command line names; empty where it names none."""
    template.check()
    chosen = named_bundles(orderings.ordering or [], template, auto)
    if orderings.bundles is not None:
        chosen += read_bundles(orderings.bundles, template)
    return chosen


def _write(outputs: ComparisonOutputs, comparisons: Sequence[Comparison]) -> None:
    if outputs.json is not None:
        results = [comparison.to_json() for comparison in comparisons]
        write_json(outputs.json, results, schema=SCHEMA, several="comparisons")
    if outputs.requests_out is not None:
        tables = [run.requests for run in comparisons[0].runs if run.requests is not None]
        write_requests(tables, outputs.requests_out, "--requests-out")
        say(f"requests: {outputs.requests_out}")
    if outputs.report is None:
        say("--report FILE.html draws it: TTFT by prompt length, the queue and KV memory over time")
        return
    from headway.bench.report.html_report import write_report

    with replacing(outputs.report, "--report") as temporary:
        write_report(comparisons[0], temporary)
    say(f"report: {outputs.report}")
