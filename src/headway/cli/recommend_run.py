"""Runs `headway recommend`: traffic in, candidates simulated, verdict and configuration out."""

from __future__ import annotations

from headway.bench.experiment.bundles import Bundle, named_bundles, read_bundles
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import check_files, replacing
from headway.bench.progress import progress, say
from headway.bench.recommendation.candidates import gateway_text, vllm_command, vllm_text
from headway.bench.recommendation.objective import read_objective
from headway.bench.recommendation.recommendation import SCHEMA, Recommendation, Task
from headway.bench.recommendation.verdict import recommend
from headway.bench.user_mistake import as_mistakes
from headway.cli.command_options import GatewayPolicies, ReplicaOptions
from headway.cli.comparison_options import ComparedOrderings, ComparisonOutputs
from headway.cli.modelled_replica import profile_files
from headway.cli.result_files import STDOUT, command_line, json_file, write_json
from headway.cli.traffic import Traffic
from headway.policies.places import DecisionPlace, check_place


def run_recommendation(
    traffic: Traffic,
    replica: ReplicaOptions,
    orderings: ComparedOrderings,
    others: GatewayPolicies,
    outputs: ComparisonOutputs,
    *,
    objective: str,
    slo: str,
    jobs: int | None,
) -> None:
    """Simulate, choose, print, write.

    Raises:
        UserMistake: an option, a name or a trace is wrong; wherever possible, before anything is simulated.
    """
    wanted = read_objective(objective, Slo.parse(slo))
    files_read = [*traffic.files(), *profile_files(replica)]
    if orderings.bundles is not None:
        files_read.append(str(orderings.bundles))
    check_files({"--json": json_file(outputs.json), "--report": outputs.report}, files_read)
    template = Bundle("fcfs", "fcfs", others.admission, others.preemption, others.prediction)
    template.check()
    chosen = named_bundles(orderings.ordering or [], template)
    if orderings.bundles is not None:
        chosen += read_bundles(orderings.bundles, template)
    for bundle in chosen or [template]:
        where = "--prediction" if bundle.prediction == template.prediction else f"bundle.{bundle.label}.prediction"
        with as_mistakes():  # a configuration to paste must be one that can be used
            check_place("prediction", bundle.prediction, DecisionPlace.GATEWAY, where)
    (name,) = traffic.names
    (load,) = traffic.loads_of(name)
    server, trace = traffic.prepare(name, replica, wanted.slo)
    task = Task(trace, server, wanted, template, chosen, load, traffic.reading.seed)
    found = recommend(task, jobs=jobs, progress=progress, command=command_line())
    if outputs.json != STDOUT:
        for line in report(found):
            print(line)
    if outputs.json is not None:
        write_json(outputs.json, [found.to_json()], schema=SCHEMA, several="recommendations")
    if outputs.report is not None:
        from headway.bench.report.recommendation_report import recommendation_html

        with replacing(outputs.report, "--report") as temporary:
            temporary.write_text(recommendation_html(found), encoding="utf-8", newline="\n")
        say(f"report: {outputs.report}")


def report(found: Recommendation) -> list[str]:
    """The candidates, the verdict and the configuration to paste, in lines."""
    from headway.bench.report.recommendation_report import facts_of

    facts = [f"{title:<9}  {text}" for title, text in facts_of(found).items()]
    width = max(len(one.label) for one in found.competing)
    lines = [*facts, "", f"{'candidate':<{width}}  {'mean TTFT':>10}  {'p99 TTFT':>10}  {'longest':>10}  goodput"]
    for number, one in enumerate(found.competing):
        times = [one.measures[name] for name in ("mean-ttft", "p99-ttft", "longest-ttft")]
        notes = ["dominated"] if found.is_dominated(one) else []
        notes += [f"breaks {', '.join(one.breaks)}"] if one.breaks else []
        notes += ["recommended"] if one is found.verdict else ["alike"] if found.told.alike[number] else []
        said = "  ".join(f"{seconds:>8.3g} s" for seconds in times)
        lines.append(f"{one.label:<{width}}  {said}  {1 - one.measures['missed']:>7.1%}  {', '.join(notes)}".rstrip())
    gateway, vllm = gateway_text(found.verdict.bundle), vllm_text(found.verdict.bundle)
    return [
        *lines,
        "",
        *found.sentences(),
        "",
        "# headway serve --config FILE",
        *gateway.splitlines(),
        "",
        f"# {vllm_command()}",
        *vllm.splitlines(),
    ]
