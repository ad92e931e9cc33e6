"""The report of `headway recommend`: the verdict, all candidates in two pictures, and the configuration to paste."""

from __future__ import annotations

from headway.bench.recommendation.candidates import gateway_text, vllm_text
from headway.bench.recommendation.recommendation import Candidate, Recommendation
from headway.bench.report.frontier_picture import PolicyPoint, frontier_figures
from headway.bench.report.html_report import document, section
from headway.bench.report.markup import Markup, join, tag
from headway.bench.report.table_columns import counted


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
            tag("p", "For vLLM, in a file that ", tag("code", "HEADWAY_CONFIG"), " names:"),
            tag("pre", vllm_text(bundle)),
        ),
        section("Repeat it", tag("pre", found.command)),
    )


def _heading(found: Recommendation) -> Markup:
    task, said = found.task, found.sentences()
    load = "its own arrivals" if task.load is None else f"load {task.load:g}"
    facts = f"{task.trace.name} · {counted(len(task.trace), 'request')} · {load} · objective {task.objective.name}"
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
    return drawn if drawn else join(tag("p", "Only one candidate competed, so there is nothing to compare."))


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
    )
