"""The report of `headway recommend`: the verdict, all candidates in two pictures, and the configuration to paste."""

from __future__ import annotations

from headway.bench.experiment.simulated_runs import facts_of_replica
from headway.bench.recommendation.candidates import gateway_text, vllm_command, vllm_text
from headway.bench.recommendation.recommendation import Candidate, Recommendation
from headway.bench.report.comparison_facts import describe_replica
from headway.bench.report.frontier_picture import PolicyPoint, frontier_figures
from headway.bench.report.html_report import document, section
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.table_columns import counted, significant


def recommendation_html(found: Recommendation) -> str:
    """The document, well-formed as XML behind its doctype. Its bytes depend on the recommendation alone."""
    bundle = found.verdict.bundle
    return document(
        f"headway recommend: {found.task.trace.name}",
        _heading(found),
        section("What can be had for what", _pictures(found)),
        section(
            "Configuration",
            tag("p", "For ", tag("code", "headway serve --config FILE"), ":"),
            tag("pre", gateway_text(bundle)),
            tag("p", "For ", tag("code", vllm_command()), ":"),
            tag("pre", vllm_text(bundle)),
        ),
        section("Repeat it", tag("pre", found.command)),
    )


def facts_of(found: Recommendation) -> dict[str, str]:
    """What was asked, by title: the traffic, what serves it, and the objective."""
    task = found.task
    load = "its own arrivals" if task.load is None else f"load {task.load:g}"
    if found.saturation is not None and task.load is not None:
        load += f" ({significant(task.load * found.saturation.requests_per_second)} requests/s)"
    objective = task.objective
    return {
        "trace": f"{task.trace.name}: {counted(len(task.trace), 'request')}, {load}",
        "replica": describe_replica(facts_of_replica(task.replica)),
        "objective": f"{objective.name}: {objective.in_words()}",
    }


def _heading(found: Recommendation) -> Markup:
    said = found.sentences()
    facts = " · ".join(facts_of(found).values())
    return tag(
        "header",
        tag("p", facts, class_="eyebrow"),
        tag("h1", said[0]),
        *(tag("p", sentence, class_="lead") for sentence in said[1:]),
        tag("p", tag("strong", "These are simulated times. "), "Another day may differ.", class_="note"),
    )


def _pictures(found: Recommendation) -> Markup:
    points = [_point(found, number, one) for number, one in enumerate(found.competing)]
    drawn = frontier_figures(points, found.bounds.ttft_seconds)
    if not drawn:
        return join(tag("p", "Only one candidate competed, so there is nothing to compare."))
    broken = not all(found.is_allowed(one) for one in found.competing)
    told = "What breaks a bound of the objective is faint too, and is not on the frontier."
    return join(tag("p", told, class_="quiet"), drawn) if broken else drawn


def _point(found: Recommendation, number: int, one: Candidate) -> PolicyPoint:
    notes = ["recommended"] if one is found.verdict else ["alike"] if found.told.alike[number] else []
    notes += [f"breaks {', '.join(one.breaks)}"] if one.breaks else []
    return PolicyPoint(
        one.label,
        number,
        one.measures["mean-ttft"],
        one.measures["p99-ttft"],
        one.measures["longest-ttft"],
        1 - one.measures["missed"],
        note=", ".join(notes),
        is_chosen=one is found.verdict,
        is_allowed=found.is_allowed(one),
    )
