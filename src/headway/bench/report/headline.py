"""The headline: what a comparison showed, in plain sentences, and what to doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.report.table_columns import incomparable, ratio_text, seconds_text

NOISE_SHARE = 0.02
"""Smaller differences of mean TTFT count as none: one trace and one seed do not support more."""


def headline(comparison: Comparison) -> tuple[str, ...]:
    """Sentences, the most important first: the best policy at the highest load, its price, and what to doubt.

    Best is the least geometric mean of mean and p99 TTFT: a shorter mean that a long tail pays for is not crowned.
    """
    runs = comparison.at_load(_highest_load(comparison))
    baseline = next((run for run in runs if run.policy == comparison.baseline_label()), None)
    racing = [run for run in runs if run.metrics.ttft_seconds.mean is not None and not incomparable(comparison, run)]
    if not racing:
        return ("No request got a first token.", *_losses(runs))
    best = min(racing, key=lambda run: (_mean_and_tail(run), run is not baseline))
    shortest = min(racing, key=_mean_ttft)
    sentences = [_winner(best, baseline, racing)]
    if baseline is not None and best is not baseline and _mean_ttft(best) < (1 - NOISE_SHARE) * _mean_ttft(baseline):
        sentences += _price(best, baseline)
    if _mean_ttft(shortest) < (1 - NOISE_SHARE) * _mean_ttft(best):
        sentences.append(_shorter_mean(shortest, best))
    return (*sentences, *_goodput(comparison, runs, baseline), *_twins(runs), *_losses(runs), *_doubts(runs))


def _highest_load(comparison: Comparison) -> float | None:
    return max(comparison.loads(), key=lambda load: -1.0 if load is None else load, default=None)


def _mean_ttft(run: Run) -> float:
    mean = run.metrics.ttft_seconds.mean
    assert mean is not None, "called only for runs with a first token"
    return mean


def _mean_and_tail(run: Run) -> float:
    """Geometric mean of mean and p99 TTFT, in seconds."""
    tail = run.metrics.ttft_seconds.p99
    return math.sqrt(_mean_ttft(run) * (_mean_ttft(run) if tail is None else tail))


def _shorter_mean(shortest: Run, best: Run) -> str:
    tail, other = shortest.metrics.ttft_seconds.p99, best.metrics.ttft_seconds.p99
    return (
        f"{shortest.policy} has a shorter mean, {seconds_text(_mean_ttft(shortest))} "
        f"({ratio_text(_mean_ttft(shortest), _mean_ttft(best))} of {best.policy}'s), "
        f"at {ratio_text(tail, other)} its p99."
    )


def _winner(best: Run, baseline: Run | None, racing: list[Run]) -> str:
    at = "On this trace, " if best.load is None else f"At load {best.load:g}, "
    mean, slowest, least = _mean_ttft(best), max(racing, key=_mean_ttft), min(map(_mean_ttft, racing))
    if len(racing) == 1:
        return f"{at}{best.policy} had a mean time to first token of {seconds_text(mean)}."
    if least >= (1 - NOISE_SHARE) * _mean_ttft(slowest):
        return (
            f"{at}the order hardly mattered: all mean times to first token lie between {seconds_text(least)} and "
            f"{seconds_text(_mean_ttft(slowest))}."
        )
    if baseline is None or baseline not in racing:
        return f"{at}{best.policy} was best in mean and p99 TTFT together: a mean of {seconds_text(mean)}."
    if best is baseline and least < (1 - NOISE_SHARE) * mean:
        return f"{at}no policy beat {best.policy} in mean and p99 TTFT together; its mean is {seconds_text(mean)}."
    if mean >= (1 - NOISE_SHARE) * _mean_ttft(baseline):
        return (
            f"{at}no policy had a mean time to first token clearly below {baseline.policy}'s "
            f"{seconds_text(_mean_ttft(baseline))}."
        )
    return (
        f"{at}{best.policy} cut the mean time to first token from {seconds_text(_mean_ttft(baseline))} under "
        f"{baseline.policy} to {seconds_text(mean)} ({ratio_text(mean, _mean_ttft(baseline))})."
    )


def _price(best: Run, baseline: Run) -> list[str]:
    """What got worse under the best policy, of the numbers that a reader would ask for; also if none did."""
    candidates = (
        ("the 99th percentile of TTFT", best.metrics.ttft_seconds.p99, baseline.metrics.ttft_seconds.p99),
        (
            "the mean TTFT of the longest 5 % of prompts",
            best.metrics.ttft_longest_5pct_seconds.mean,
            baseline.metrics.ttft_longest_5pct_seconds.mean,
        ),
        ("the mean time per output token", best.metrics.tpot_seconds.mean, baseline.metrics.tpot_seconds.mean),
        ("the 99th percentile end to end", best.metrics.e2e_seconds.p99, baseline.metrics.e2e_seconds.p99),
    )
    worse = [
        f"{name} went from {seconds_text(before)} to {seconds_text(now)} ({ratio_text(now, before)})"
        for name, now, before in candidates
        if now is not None and before is not None and now > (1 + NOISE_SHARE) * before
    ]
    if not worse:
        return ["None of these got worse by more than 2 %: TTFT p99, TTFT of the longest 5 %, TPOT, end-to-end p99."]
    return [f"The price: {'; '.join(worse)}."]


def _goodput(comparison: Comparison, runs: tuple[Run, ...], baseline: Run | None) -> list[str]:
    slo = str(comparison.slo)
    if not slo or len(runs) == 1:
        return []
    best = max(runs, key=lambda run: (run.metrics.goodput, run is baseline))
    share = f"The most requests within {slo}: {best.metrics.goodput:.1%} of those offered, under {best.policy}"
    if baseline is None or baseline is best:
        return [f"{share}."]
    return [f"{share}; {baseline.metrics.goodput:.1%} under {baseline.policy}."]


def _losses(runs: tuple[Run, ...]) -> list[str]:
    short = [run for run in runs if run.metrics.completed < run.metrics.requests]
    if not short:
        return []
    counts = "; ".join(f"{run.policy} {run.metrics.completed:,} of {run.metrics.requests:,}" for run in short)
    return [f"Not all requests completed ({counts}): latencies cover the completed ones, goodput covers all."]


def _twins(runs: tuple[Run, ...]) -> list[str]:
    """Runs with equal numbers; a reader should not take one as a confirmation of the other."""
    alike: list[list[Run]] = []
    for run in runs:
        group = next((group for group in alike if group[0].metrics == run.metrics), None)
        if group is None:
            alike.append([run])
        else:
            group.append(run)
    return [
        f"{', '.join(run.policy for run in group[:-1])} and {group[-1].policy} gave exactly the same numbers: on this "
        "traffic, with these predictions, they made the same choices."
        for group in alike
        if len(group) > 1
    ]


def _doubts(runs: tuple[Run, ...]) -> list[str]:
    oracles = sorted({name for run in runs if (name := _prediction(run)).startswith("oracle")})
    if not oracles:
        return []
    return [
        f"Output lengths came from {' and '.join(oracles)}, which knows the true ones. With a real predictor, policies "
        "that use lengths gain less."
    ]


def _prediction(run: Run) -> str:
    chosen = run.bundle.get("prediction")
    name = chosen.get("name") if isinstance(chosen, Mapping) else chosen
    return str(name or "")
