"""Candidates: the bundles that compete for a recommendation, each with a small grid of its dial."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from headway.bench.experiment.bundles import Bundle
from headway.policies.catalog import KINDS

ORDERS: Sequence[tuple[str, str | None, Sequence[float]]] = (
    ("fcfs", None, ()),
    ("highest-response-ratio", None, ()),
    ("shortest-uncached-prefill-first", None, ()),
    ("shortest-job-first", None, ()),
    ("shortest-job-first-aging", "service_seconds_per_second_waited", (0.03, 0.3)),
    ("smallest-volume-first", None, ()),
    ("gittins", None, ()),
    ("priced-work", "patience", (1.25, 2.0, 5.0)),
    ("boost", "decay_factor", (0.1, 0.3, 1.0, 3.0)),
    ("ewsjf", None, ()),
)
"""Order, its dial, and the values of the dial that compete. No order here knows true lengths or needs classes."""
DEFAULT = "highest-response-ratio"
"""What the gateway does unless told otherwise; it is always among the candidates."""
STEADY = "gittins"
"""What is recommended for a mean or a share unless another order is better beyond chance: over the training windows of
docs/results/frontier.md no order held as well on the window that followed, and it was never worse than the default."""
VICTIM_OF_ENGINES = "latest-admitted"
"""Whom engines preempt when nobody tells them."""
OTHERS: Sequence[tuple[str, str]] = (
    ("admission", "overflow-probability"),
    ("preemption", "least-sunk-work"),
    ("prediction", "running-mean"),
)
"""One other policy at a time, tried beside the best order."""


def candidates(template: Bundle) -> list[Bundle]:
    """One bundle for each order and value of its dial, otherwise like `template`."""
    others = {kind: given for kind, given in template.options.items() if kind != "ordering"}
    made = []
    for ordering, dial, values in ORDERS:
        if dial is None:
            made.append(replace(template, label=ordering, ordering=ordering, options=others))
            continue
        for value in values:
            label, options = f"{ordering}({dial}={value:g})", {**others, "ordering": {dial: value}}
            made.append(replace(template, label=label, ordering=ordering, options=options))
    return made


def variants(bundle: Bundle) -> list[Bundle]:
    """The same order with one other policy each."""
    made = []
    for kind, name in OTHERS:
        if getattr(bundle, kind) != name:
            options = {key: value for key, value in bundle.options.items() if key != kind}
            chosen: dict[str, Any] = {kind: name}
            made.append(replace(bundle, label=f"{bundle.label} + {name}", options=options, **chosen))
    return made


def gateway_text(bundle: Bundle) -> str:
    """The table `[policies]` for `headway serve --config`. A gateway leaves the choice of a victim to the engine.

    A comment says so where the bundle names a victim that no engine chooses by itself.
    """
    lines = [f'{kind} = "{getattr(bundle, kind)}"' for kind in KINDS if kind != "preemption"]
    options = {kind: given for kind, given in bundle.options.items() if given and kind != "preemption"}
    tables = [f"{kind} = {_inline(given)}" for kind, given in options.items()]
    lines += [f"options = {{{', '.join(tables)}}}"] if tables else []
    other = bundle.preemption != VICTIM_OF_ENGINES
    note = [f"# Not here: preemption = {bundle.preemption}. Behind a gateway the engine chooses whom to preempt."]
    return "\n".join(["[policies]", *lines, *_offline_line(bundle), *(note if other else [])]) + "\n"


def vllm_command() -> str:
    """How vLLM is started with the file of `vllm_text`."""
    return "HEADWAY_CONFIG=FILE vllm serve MODEL --scheduler-cls headway.vllm_plugin.Scheduler"


def vllm_text(bundle: Bundle) -> str:
    """The file for the plug-in: HEADWAY_CONFIG names it."""
    lines = []
    for kind in KINDS:
        given = bundle.options.get(kind)
        name = f'"{getattr(bundle, kind)}"'
        lines.append(f"{kind} = {{name = {name}, options = {_inline(given)}}}" if given else f"{kind} = {name}")
    lines += _offline_line(bundle)
    plugin = bundle.plugin
    if plugin.tuning != "off":
        lines.append(f'tuning = "{plugin.tuning}"')
    if plugin.tuning == "prefill-budget":
        lines.append(f"tpot_seconds = {plugin.tpot_seconds}")
    for name, rules in (("guard", plugin.guard), ("displace", plugin.displace)):
        if rules is not None:
            lines.append(f"{name} = {_inline(asdict(rules))}")
    return "\n".join(lines) + "\n"


def _offline_line(bundle: Bundle) -> list[str]:
    return [f'offline_ordering = "{bundle.offline_ordering}"'] if bundle.offline_ordering != "fcfs" else []


def _inline(options: object) -> str:
    assert isinstance(options, dict), "options of a policy are a table"
    return "{" + ", ".join(f"{name} = {_value(value)}" for name, value in options.items()) + "}"


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return _inline(value) if isinstance(value, dict) else f'"{value}"'
