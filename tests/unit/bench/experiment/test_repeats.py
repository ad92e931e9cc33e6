"""Repeated comparisons: seeds of a workload, blocks of a trace, and what table, headline, report and JSON say."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.comparison import Comparison
from headway.bench.experiment.repeats import Blocks, Repeats
from headway.bench.experiment.simulated_runs import Experiment, compare
from headway.bench.metrics.paired_draws import DRAWS
from headway.bench.metrics.samples import Samples, Told
from headway.bench.report.headline import headline
from headway.bench.report.html_report import report_html
from headway.bench.report.table_columns import cell_columns
from headway.bench.report.terminal_table import print_comparison
from headway.bench.report.written_table import csv_table, markdown_table
from headway.bench.user_mistake import UserMistake
from headway.bench.workloads import WORKLOADS
from headway.simulator.replica import replica
from tests.support.handmade_days import demo_comparison, demo_trace

DOCS = Path(__file__).parents[4] / "docs" / "json.md"
BUNDLES = [Bundle(name, ordering=name) for name in ("fcfs", "shortest-prompt-first")]
SMALL = replica("l4", "llama-3.1-8b")


def seeds(count: int = 3, *, loads: tuple[float | None, ...] = (0.9,), requests: int = 60) -> Experiment:
    first, *further = [WORKLOADS["chat"].generate(requests, seed) for seed in range(count)]
    return Experiment(first, SMALL, BUNDLES, loads, repeats=Repeats(count, further))


def blocks(count: int = 5, loads: tuple[float | None, ...] = (None,)) -> Experiment:
    return Experiment(demo_trace(200), SMALL, BUNDLES, loads, repeats=Repeats(count))


@pytest.fixture(scope="module")
def of_seeds() -> Comparison:
    return compare(seeds(loads=(0.7, 1.1)), jobs=1)


@pytest.fixture(scope="module")
def of_blocks() -> Comparison:
    return compare(blocks(), jobs=1)


def printed(comparison: Comparison) -> str:
    stream = io.StringIO()
    print_comparison(comparison, Console(file=stream, width=240))
    return stream.getvalue()


def test_a_run_over_seeds_is_the_mean_of_the_runs_of_each(of_seeds: Comparison) -> None:
    experiment = seeds(loads=(0.7, 1.1))
    assert experiment.repeats is not None
    assert of_seeds.saturation is not None
    rate = of_seeds.saturation["requests_per_second"]
    assert isinstance(rate, float)
    alone = []
    for number, trace in enumerate((experiment.trace, *experiment.repeats.further)):
        span = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0])
        dense = (len(trace) - 1) / span / (1.1 * rate)
        arrived = trace.arrived_seconds[0] + (trace.arrived_seconds - trace.arrived_seconds[0]) * dense
        day = dataclasses.replace(trace, arrived_seconds=arrived)
        alone.append(compare(Experiment(day, SMALL, BUNDLES, seed=number), jobs=1).runs[1].metrics)
    run = of_seeds.at_load(1.1)[1]
    means = [one.ttft_seconds.mean for one in alone]
    assert run.metrics.ttft_seconds.mean == pytest.approx(np.mean([mean for mean in means if mean is not None]))
    assert run.metrics.completed == sum(one.completed for one in alone)
    assert (run.policy, run.seed, len(of_seeds.runs)) == ("shortest-prompt-first", 0, 4)


def test_the_result_does_not_depend_on_the_number_of_processes() -> None:
    one, two = (compare(seeds(), jobs=jobs).to_json() for jobs in (1, 2))
    for told in (one, two):
        for run in told["runs"]:  # type: ignore[attr-defined]
            run["wall_seconds"] = 0
    assert one == two


def test_blocks_change_no_number_and_add_intervals_that_hold_it(of_blocks: Comparison) -> None:
    plain = compare(dataclasses.replace(blocks(), repeats=None), jobs=1)
    for run, other in zip(of_blocks.runs, plain.runs, strict=True):
        assert run.metrics == other.metrics
        assert other.samples is None
        interval = of_blocks.interval(run, "ttft_seconds.mean")
        assert interval is not None
        assert run.metrics.ttft_seconds.mean is not None
        assert interval.low <= run.metrics.ttft_seconds.mean <= interval.high


@pytest.mark.parametrize("kind", ["of_seeds", "of_blocks"])
def test_the_docs_name_every_key_of_a_repeated_comparison(kind: str, request: pytest.FixtureRequest) -> None:
    data = json.loads(json.dumps(request.getfixturevalue(kind).to_json(), allow_nan=False))
    documented = set(re.findall(r"`(\w+)`", DOCS.read_text(encoding="utf-8")))
    run, repeats = data["runs"][1], data["repeats"]
    keys = {*data, *run, *repeats, *run["intervals"], *run["ratio_intervals"], *run["intervals"]["goodput"]}
    keys |= {key for block in repeats["blocks"] for key in block}
    assert keys <= documented, f"docs/json.md lacks {sorted(keys - documented)}"
    assert repeats["kind"] == kind.removeprefix("of_")
    assert data["runs"][0]["ratio_intervals"] == {}
    assert (
        run["ratio_intervals"]["ttft_seconds"]["mean"]["low"] <= run["ratio_intervals"]["ttft_seconds"]["mean"]["high"]
    )


def test_each_place_shows_the_bars(of_seeds: Comparison) -> None:
    text = printed(of_seeds)
    cell = cell_columns(of_seeds)[0].cells[0]
    assert cell.bar.startswith("±")
    assert f"{cell.text} {cell.bar}" in re.sub(" +", " ", text)
    assert "3 seeds, 0 to 2" in text
    assert cell.bar in report_html(of_seeds)
    assert "error-bar" in report_html(of_seeds)
    assert cell.bar in markdown_table(of_seeds)
    row = next(csv.DictReader(io.StringIO(csv_table(of_seeds))))
    assert float(row["ttft_seconds.mean.low"]) < float(row["ttft_seconds.mean"]) < float(row["ttft_seconds.mean.high"])


def test_short_blocks_are_said_to_make_intervals_too_narrow() -> None:
    trace = demo_trace(100)
    span = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0])
    assert not Blocks.of(trace, 10, span / 31).is_short
    assert Blocks.of(trace, 10, span / 29).is_short
    crowded = compare(blocks(20, loads=(3.0,)), jobs=1)
    assert "intervals are too narrow" in " ".join(printed(crowded).split())


def test_too_few_repeats_are_a_mistake() -> None:
    with pytest.raises(UserMistake, match="2 repeats are too few for error bars; take at least 3"):
        Repeats(2)


def with_spread(spread: float, means: tuple[float, float, float]) -> Comparison:
    """Three runs whose TTFT is known but for a factor; each run's chance is its own."""
    comparison = demo_comparison(("fcfs", "shortest-prompt-first", "random"))
    runs = []
    for number, (run, mean) in enumerate(zip(comparison.runs, means, strict=True)):
        draws = mean * np.exp(spread * np.random.default_rng(number).standard_normal(DRAWS))
        told = {f"ttft_seconds.{part}": Told(mean, draws) for part in ("mean", "p99")}
        samples = Samples({name: one.draws for name, one in told.items()}, told)
        ttft = dataclasses.replace(run.metrics.ttft_seconds, mean=mean, p99=mean)
        runs.append(
            dataclasses.replace(run, samples=samples, metrics=dataclasses.replace(run.metrics, ttft_seconds=ttft))
        )
    return dataclasses.replace(comparison, runs=tuple(runs))


def test_the_headline_says_what_cannot_be_told_apart() -> None:
    everything = headline(with_spread(1.0, (2.0, 1.0, 1.5)))
    assert "none of these can be told apart from the best in mean and p99 TTFT together" in everything[0]
    assert not any("The price" in sentence for sentence in everything)
    some = " ".join(headline(with_spread(0.05, (2.0, 1.0, 1.02))))
    assert "cut the mean time to first token from 2.00 s under fcfs to 1.00 s (0.50×, 90 % interval 0.4" in some
    assert "shortest-prompt-first cannot be told apart from random." in some
    none = " ".join(headline(with_spread(0.01, (2.0, 1.0, 1.5))))
    assert "shortest-prompt-first is better than all others by more than chance." in none
    baseline = headline(with_spread(0.05, (1.03, 1.0, 2.0)))[0]
    assert "but cannot be told apart from fcfs." in baseline


def test_marks_tell_the_best_and_those_alike() -> None:
    mean = cell_columns(with_spread(0.05, (2.0, 1.0, 1.02)))[0]
    assert [(cell.is_best, cell.is_alike) for cell in mean.cells] == [(False, False), (True, False), (False, True)]
