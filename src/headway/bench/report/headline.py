"""The headline: what a comparison showed, in plain sentences, and what to doubt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from headway.bench.experiment.comparison import Comparison, Run
from headway.bench.metrics.samples import Told, not_worse
from headway.bench.report.table_columns import incomparable, ratio_text, seconds_text

_MEAN, _TAIL = "ttft_seconds.mean", "ttft_seconds.p99"
NOISE_SHARE = 0.02
"""Smaller differences of mean TTFT count as none: one trace and one seed do not support more."""


def headline(comparison: Comparison) -> tuple[str, ...]:
    """Sentences, the most important first: the best policy at the highest load, its price, and what to doubt.

    Best is the least geometric mean of mean and p99 TTFT: a shorter mean that a long tail pays for is not crowned.
    Where the comparison is repeated, it says what cannot be told apart.
    """
    runs = comparison.at_load(_highest_load(comparison))
    baseline = next((run for run in runs if run.policy == comparison.baseline_label()), None)
    racing = [run for run in runs if run.metrics.ttft_seconds.mean is not None and not incomparable(comparison, run)]
    if not racing:
        return ("No request got a first token.", *_losses(runs))
    best = min(racing, key=lambda run: (_mean_and_tail(run), run is not baseline))
    shortest = min(racing, key=_mean_ttft)
    alike = _alike_to(best, racing)
    is_better = baseline is not None and best is not baseline and baseline not in alike
    sentences = [_winner(comparison, best, baseline, racing, alike)]
    if baseline is not None and is_better and _mean_ttft(best) < (1 - NOISE_SHARE) * _mean_ttft(baseline):
        sentences += _price(best, baseline)
    if is_better:
        sentences += _told_apart(best, racing, alike)
    if _mean_ttft(shortest) < (1 - NOISE_SHARE) * _mean_ttft(best) and _is_worse(best, shortest, _MEAN):
        sentences.append(_shorter_mean(shortest, best))
    return (*sentences, *_goodput(comparison, runs, baseline), *_twins(runs), *_losses(runs), *_doubts(runs))


def _alike_to(best: Run, racing: Sequence[Run]) -> list[Run]:
    """Those of the others that cannot be told apart from it in mean and p99 TTFT together; none without samples."""
    told = [both for run in racing if (both := _told_together(run)) is not None]
    if len(told) < len(racing):
        return []
    kept = not_worse(told, racing.index(best))
    return [run for run, is_kept in zip(racing, kept, strict=True) if is_kept and run is not best]


def _told_together(run: Run) -> Told | None:
    """The geometric mean of mean and p99 TTFT; None without samples."""
    mean, tail = (None if run.samples is None else run.samples.told.get(name) for name in (_MEAN, _TAIL))
    if mean is None or tail is None:
        return None
    return Told(math.sqrt(mean.estimate * tail.estimate), np.sqrt(mean.draws * tail.draws))


def _is_worse(run: Run, other: Run, name: str, *, is_high_better: bool = False) -> bool:
    """Whether a run is behind another one in a number by more than chance; without samples any difference counts."""
    mine, theirs = (None if one.samples is None else one.samples.told.get(name) for one in (run, other))
    if mine is None or theirs is None:
        return True
    return not not_worse([theirs, mine], 0, is_high_better=is_high_better)[1]


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


def _winner(comparison: Comparison, best: Run, baseline: Run | None, racing: list[Run], alike: list[Run]) -> str:
    at = "On this trace, " if best.load is None else f"At load {best.load:g}, "
    mean, slowest, least = _mean_ttft(best), max(racing, key=_mean_ttft), min(map(_mean_ttft, racing))
    if len(racing) == 1:
        return f"{at}{best.policy} had a mean time to first token of {seconds_text(mean)}."
    if least >= (1 - NOISE_SHARE) * _mean_ttft(slowest):
        return (
            f"{at}the order hardly mattered: all mean times to first token lie between {seconds_text(least)} and "
            f"{seconds_text(_mean_ttft(slowest))}."
        )
    if len(alike) == len(racing) - 1:
        return (
            f"{at}none of these can be told apart from the best in mean and p99 TTFT together, {best.policy}; means "
            f"lie between {seconds_text(least)} and {seconds_text(_mean_ttft(slowest))}."
        )
    if baseline is not None and baseline in alike:
        return (
            f"{at}{best.policy} was best in mean and p99 TTFT together, with a mean of {seconds_text(mean)}, but "
            f"cannot be told apart from {', '.join(run.policy for run in alike)}."
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
    ratio = f"{ratio_text(mean, _mean_ttft(baseline))}{_span(comparison, best)}"
    return (
        f"{at}{best.policy} cut the mean time to first token from {seconds_text(_mean_ttft(baseline))} under "
        f"{baseline.policy} to {seconds_text(mean)} ({ratio})."
    )


def _told_apart(best: Run, racing: list[Run], alike: list[Run]) -> list[str]:
    """How sure it is that the best one is best; nothing without samples."""
    if best.samples is None or len(racing) == 1:
        return []
    if alike:
        return [f"{best.policy} cannot be told apart from {', '.join(run.policy for run in alike)}."]
    return [f"{best.policy} is better than all others by more than chance."]


def _span(comparison: Comparison, best: Run) -> str:
    """Where the ratio of its mean to the baseline's lies."""
    ratio = comparison.ratio_interval(best, _MEAN)
    return "" if ratio is None else f", 90 % interval {ratio_text(ratio.low, 1.0)} to {ratio_text(ratio.high, 1.0)}"


def _price(best: Run, baseline: Run) -> list[str]:
    """What got worse under the best policy, of the numbers that a reader would ask for; also if none did."""
    new, old = best.metrics, baseline.metrics
    candidates = (
        ("the 99th percentile of TTFT", _TAIL, new.ttft_seconds.p99, old.ttft_seconds.p99),
        (
            "the mean TTFT of the longest 5 % of prompts",
            "ttft_longest_5pct_seconds.mean",
            new.ttft_longest_5pct_seconds.mean,
            old.ttft_longest_5pct_seconds.mean,
        ),
        ("the mean time per output token", "tpot_seconds.mean", new.tpot_seconds.mean, old.tpot_seconds.mean),
        ("the 99th percentile end to end", "e2e_seconds.p99", new.e2e_seconds.p99, old.e2e_seconds.p99),
    )
    worse = [
        f"{name} went from {seconds_text(before)} to {seconds_text(now)} ({ratio_text(now, before)})"
        for name, number, now, before in candidates
        if now is not None
        and before is not None
        and now > (1 + NOISE_SHARE) * before
        and _is_worse(best, baseline, number)
    ]
    if not worse:
        sure = "" if best.samples is None else " and by more than chance"
        return [
            f"None of these got worse by more than 2 %{sure}: TTFT p99, TTFT of the longest 5 %, TPOT, end-to-end p99."
        ]
    return [f"The price: {'; '.join(worse)}."]


def _goodput(comparison: Comparison, runs: tuple[Run, ...], baseline: Run | None) -> list[str]:
    slo = str(comparison.slo)
    if not slo or len(runs) == 1:
        return []
    best = max(runs, key=lambda run: (run.metrics.goodput, run is baseline))
    share = f"The most requests within {slo}: {best.metrics.goodput:.1%} of those offered, under {best.policy}"
    if baseline is None or baseline is best:
        return [f"{share}."]
    told = "" if _is_worse(baseline, best, "goodput", is_high_better=True) else ", which cannot be told apart"
    return [f"{share}; {baseline.metrics.goodput:.1%} under {baseline.policy}{told}."]


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
