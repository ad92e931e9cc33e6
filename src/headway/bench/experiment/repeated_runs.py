"""One run in place of those of several seeds, and what the error bars of a comparison rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from headway.bench.experiment.comparison import MeanBounds, Run
from headway.bench.experiment.repeats import Blocks, RepeatFacts, Repeats
from headway.bench.metrics.mean_metrics import mean_metrics
from headway.bench.metrics.samples import over_seeds
from headway.simulator.trace import Trace


def joined_seeds(runs: Sequence[Run], seeds: int, seed: int) -> list[Run]:
    """One run in place of those of all seeds, which stand one seed after the other; `seed` is that of the draws."""
    if seeds == 1:
        return [*runs]
    each = len(runs) // seeds
    joined = []
    for at in range(each):
        alike = runs[at::each]
        of_seeds = [run.metrics for run in alike]
        mean = mean_metrics(of_seeds)
        wall_seconds = sum(run.wall_seconds for run in alike)
        samples = over_seeds(of_seeds, mean, seed)
        joined.append(replace(alike[0], metrics=mean, samples=samples, wall_seconds=wall_seconds))
    return joined


def mean_bounds_of(bounds: Mapping[tuple[int, float | None], MeanBounds]) -> dict[float | None, MeanBounds]:
    """Bounds of the mean over seeds, at each load: the mean of theirs, where each has one."""

    def mean(values: Sequence[float | None]) -> float | None:
        there = [value for value in values if value is not None]
        return sum(there) / len(there) if len(there) == len(values) else None

    at_load: dict[float | None, list[MeanBounds]] = {}
    for (_, load), bound in bounds.items():
        at_load.setdefault(load, []).append(bound)
    return {
        load: MeanBounds(mean([one.e2e_seconds for one in several]), mean([one.ttft_seconds for one in several]))
        for load, several in at_load.items()
    }


def repeat_facts(
    repeats: Repeats | None, runs: Sequence[Run], traffic: Mapping[tuple[int, float | None], Trace], seed: int
) -> RepeatFacts | None:
    """What the error bars rest on; None where there are none.

    Args:
        repeats: what was asked for.
        runs: of all policies and loads.
        traffic: the trace of each seed, counted from 0, at each load.
        seed: the first one.
    """
    if repeats is None:
        return None
    if repeats.kind == "seeds":
        return RepeatFacts(repeats.count, seeds=range(seed, seed + repeats.count))
    blocks = {}
    for (_, load), replayed in traffic.items():
        longest = [run.metrics.longest_ttft_seconds or 0.0 for run in runs if run.load == load]
        blocks[load] = Blocks.of(replayed, repeats.count, max(longest, default=0.0))
    return RepeatFacts(repeats.count, blocks=blocks)
