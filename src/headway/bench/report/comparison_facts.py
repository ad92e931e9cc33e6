"""What a comparison stood on and what it lost, in words: replica, fleet, load, repeats, rules, predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from headway.bench.experiment.comparison import Comparison, Json
from headway.bench.experiment.repeats import RepeatFacts
from headway.bench.metrics.prediction_quality import INTERVALS
from headway.bench.metrics.run_metrics import DEFINITIONS
from headway.bench.report.table_columns import counted, significant
from headway.simulator.rules import EngineRules

_SIZES = frozenset(
    {"kv_blocks", "max_model_tokens", "max_num_batched_tokens", "max_num_seqs"}
)  # differ from card to card
_LITTLE_LOAD = 0.5  # below it, orders differ little in docs/concepts.md's picture and in our tables
_REASONS = 5  # shown of why requests were refused
_OF_LIVE_RUNS = {
    "makespan_seconds": "from the start to the end of the last request, however it ended",
    "refused": "requests that the endpoint turned away (a status of 400 to 499, or 503), with all later turns of their "
    "sessions",
    "failed": "requests without a whole answer, with all later turns of their sessions",
    "offered_requests_per_second": "requests sent after the first one, divided by the time from the first to the last",
    "completed_requests_per_second": "completed requests divided by the duration",
    "throughput_tokens_per_second": "output tokens of completed requests divided by the duration",
    "ttft_seconds": "time to first token: from when the request was due to the first piece of its answer with tokens",
}


def describe_fleet(comparison: Comparison) -> str:
    """How many replicas of which kind there are, where requests wait, and how old the figures are."""
    kinds = Counter([describe_replica(replica) for replica in comparison.fleet])
    several = "; ".join(f"{count} × {kind}" for kind, count in kinds.items())
    replicas = f"{len(comparison.fleet)} equal replicas" if len(kinds) == 1 else several
    queues = {run.queue for run in comparison.runs}
    waits = "in one queue in front of the replicas" if queues == {"gateway"} else "at the replica each is sent to"
    moves = [name for name in dict.fromkeys([run.rescheduling for run in comparison.runs]) if name is not None]
    moving = f"; rescheduling {', '.join(moves)}" if moves else ""
    return f"{replicas}; requests wait {waits}; routing reads {_signals(comparison.signal_seconds)}{moving}"


def describe_repeats(repeats: RepeatFacts) -> str:
    """What the error bars rest on, and where they are too narrow."""
    if repeats.kind == "seeds":
        return (
            f"{repeats.count} seeds, {repeats.seeds[0]} to {repeats.seeds[-1]}: numbers are means over them, counts "
            "sums; load 1 and pictures over time are those of the first"
        )
    lengths = [significant(one.seconds) for one in repeats.blocks.values()]
    said = (
        f"{repeats.count} blocks of {', '.join(lengths)} s of the trace, drawn with replacement; other days may differ "
        "by more than its blocks do"
    )
    short = [load for load, one in repeats.blocks.items() if one.is_short]
    if not short:
        return said
    at = ", ".join(f"{load:g}" for load in short if load is not None)
    return (
        f"{said}; {f'at load {at} ' if at else ''}requests wait longer than a third of a block, so intervals are too "
        "narrow: take fewer blocks or a longer trace"
    )


def describe_own_load(load: float, *, of_fleet: bool) -> str:
    """What the trace's own rate means for what serves it."""
    what = "fleet" if of_fleet else "replica"
    said = f"{significant(load, 2)} of what the {what} can serve"
    if load < _LITTLE_LOAD:
        return f"{said}: little waits, and the order hardly matters but in bursts"
    if load <= 1:
        return f"{said}: requests wait, and the order matters"
    return (
        f"{said}: the queue grows as long as the traffic lasts, and no order helps all requests; it takes "
        f"{math.ceil(load)} such {what}s"
    )


def describe_saturation(comparison: Comparison) -> str:
    """What a load of 1 is, in words."""
    saturation = comparison.saturation or {}
    rate, definition = saturation.get("requests_per_second"), saturation.get("definition")
    text = f"{significant(rate)} requests/s" if isinstance(rate, int | float) else "a measured rate"
    quarters, copies, busy = saturation.get("quarters"), saturation.get("copies"), saturation.get("busy_share")
    if isinstance(quarters, Sequence):
        rates = [rate for rate in quarters if isinstance(rate, int | float)]
        text += f" ({significant(min(rates))} to {significant(max(rates))} over the quarters of these requests)"
    if saturation.get("closed_loop") and isinstance(busy, int | float):
        text += f" (sessions in {copies} copies, replica busy {100 * busy:.0f} % of the time)"
    where = "the fleet" if comparison.fleet else "this replica"
    return f"{text}, measured on {where}{f': {definition}' if definition else ''}"


def describe_rules(comparison: Comparison) -> str:
    """What of the engine's rules is not vLLM's default, and a KV cache that is not BF16; "" if nothing is."""
    rules, profile = comparison.replica.get("rules"), comparison.replica.get("profile")
    defaults = {rule.name: rule.default for rule in fields(EngineRules) if rule.name not in _SIZES}
    shown = rules if isinstance(rules, Mapping) else {}
    parts = [f"{name} {_rule(shown[name])}" for name in defaults if shown.get(name, defaults[name]) != defaults[name]]
    kv_precision = profile.get("kv_precision", "bf16") if isinstance(profile, Mapping) else "bf16"
    return ", ".join([*parts, *([] if kv_precision == "bf16" else [f"KV cache {kv_precision}"])])


_TUNINGS = {"self-tuned": "self-tuned threshold", "prefill-budget": "prefill budget"}


def describe_plugin(comparison: Comparison) -> str:
    """In which rows the vLLM plug-in acts beside its policies; "" if in none."""
    rows: dict[str, list[str]] = {name: [] for name in (*_TUNINGS.values(), "do-no-harm guard", "displacement")}
    for run in {run.policy: run for run in comparison.runs}.values():
        if run.bundle.get("tuning", "off") != "off":
            rows[_TUNINGS[str(run.bundle["tuning"])]].append(run.policy)
        for key, name in (("guard", "do-no-harm guard"), ("displace", "displacement")):
            if run.bundle.get(key) is not None:
                rows[name].append(run.policy)
    return "; ".join(f"{what}: {', '.join(policies)}" for what, policies in rows.items() if policies)


def describe_losses(comparison: Comparison) -> Iterator[str]:
    """How many requests of a live run were refused and failed, for which reasons: a sentence for each kind."""
    for run in comparison.runs if comparison.is_live else ():
        lost = ("refused", run.metrics.refused_reasons), ("failed", run.metrics.failed_reasons)
        for verb, reasons in lost:
            often = sorted(reasons.items(), key=lambda one: (-one[1], one[0]))
            listed = "; ".join(f"{number:,} × {reason}" for reason, number in often[:_REASONS])
            rest = sum(number for _, number in often[_REASONS:])
            more = f"; {rest:,} for other reasons" if rest else ""
            if reasons:
                yield f"{counted(sum(reasons.values()), 'request')} {verb}: {listed}{more}."
        if run.metrics.unfinished:
            yield f"{counted(run.metrics.unfinished, 'request')} had not ended when the run was interrupted."


def describe_predictions(comparison: Comparison) -> Iterator[str]:
    """How well each predictor was calibrated: one sentence per load, from the first run that has it."""
    seen = set()
    for run in comparison.runs:
        quality = run.prediction_calibration
        predictor = (str(run.bundle.get("prediction")), run.load)
        if quality is None or predictor in seen:
            continue
        seen.add(predictor)
        held = ", ".join(f"{100 * quality.coverage[name]:.0f} % in its {name} % interval" for name in INTERVALS)
        at = "" if run.load is None else f" at load {run.load:g}"
        yield (
            f"Prediction {quality.made_by}{at}: of {counted(quality.completions, 'output length')} {held};"
            f" CRPS {quality.crps_tokens:.0f} tokens, mean output {quality.output_tokens:.0f}."
        )


def describe_recorded(comparison: Comparison) -> Iterator[str]:
    """How far the simulation is from the times measured when the trace was recorded; one sentence per run."""
    for run in comparison.runs:
        if run.recorded is not None:
            yield (
                f"Recorded day: the trace has measured times. Simulated {run.policy} against them: "
                f"{run.recorded.sentence()}. Every figure above has an error like this one."
            )


def describe_replica(replica: Mapping[str, Json]) -> str:
    """A replica in a line."""
    accelerators = f"{_accelerators(replica.get('tensor_parallel'))}{replica.get('hardware')}"
    memory = f", {_number(replica.get('kv_tokens'))} KV tokens" if "kv_tokens" in replica else ""
    return f"{replica.get('model')} on {accelerators}{memory}"


def _signals(seconds: float) -> str:
    return "exact figures" if not seconds else f"what replicas report every {significant(seconds)} s"


def _accelerators(count: Json) -> str:
    return f"{count} × " if isinstance(count, int) and count > 1 else ""


def _rule(value: Json) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return _adapters(value) if isinstance(value, Mapping) else _number(value)


def _adapters(rules: Mapping[str, Json]) -> str:
    """As "8 in slots, each of 13 KV blocks and loaded in 1.6 ms"; of a rule that is a table, the only one."""
    load_ps = rules["load_ps"]
    milliseconds = load_ps / 1e9 if isinstance(load_ps, int) else 0.0
    where = "in slots" if rules["paging"] == "slots" else "in pages"
    blocks = _number(rules["blocks"])
    return f"{_number(rules['resident_max'])} {where}, each of {blocks} KV blocks and loaded in {milliseconds:,.1f} ms"


def _number(value: Json) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def definition(comparison: Comparison, key: str) -> str:
    """What a metric means in these runs."""
    return (_OF_LIVE_RUNS.get(key) if comparison.is_live else None) or DEFINITIONS[key]
