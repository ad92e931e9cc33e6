"""What docs/results/bounds.md states is true of the instances it shows, and the script that wrote it still runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.studies.bounds import competitive_ratios
from headway.bounds.discrete import DiscreteRequest, Instance
from headway.bounds.exact_search import least_total_latency

ROOT = Path(__file__).parents[5]
PAGE = ROOT / "docs" / "results" / "bounds.md"


def read_instance(memory: int, text: str) -> Instance:
    requests = []
    for times, numbers in re.findall(r"(?:(\d+)×)?\(([\d, ]+)\)", text):
        requests += [DiscreteRequest(*map(int, numbers.split(", ")))] * int(times or 1)
    return Instance(tuple(requests), memory)


def test_every_worst_instance_is_as_bad_as_the_page_says() -> None:
    rows = {(row.policy, row.regime.name, row.source): row for row in competitive_ratios.ROWS}
    lines = re.findall(r"^- (.+): (\d+) / (\d+), M = (\d+): (.+) \(.* tried", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(lines) == len(rows)
    for row, (name, cost, best, memory, text) in zip(competitive_ratios.ROWS, lines, strict=True):
        assert name == f"{row.policy}, {row.regime.name}"
        instance = read_instance(int(memory), text)
        assert row.cost(instance) == int(cost), name
        assert least_total_latency(instance) == int(best), name
        assert row.bound is None or int(cost) / int(best) <= row.bound, name


def test_the_family_grows_as_the_root() -> None:
    ratios = [float(competitive_ratios.family(length)[-1]) for length in (16, 256)]
    assert ratios[1] / ratios[0] == pytest.approx(4, rel=0.35)
    assert f"| {' | '.join(competitive_ratios.family(16))} |" in PAGE.read_text("utf-8")


@pytest.mark.slow
def test_the_lemma_of_the_poisson_bounds_fails_above_half_load() -> None:
    for load, verdict in ((0.4, "true, but less than 1/μ"), (0.9, "**false**")):
        row = competitive_ratios.poisson(load)
        assert verdict in row
        assert float(row[3]) < 1, "the schedule that shows it is feasible"
        assert f"| {' | '.join(row)} |" in PAGE.read_text("utf-8")
    assert float(row[1]) == pytest.approx(177.3, abs=0.1)


def test_shrinking_finds_a_small_instance() -> None:
    row = competitive_ratios.ROWS[0]
    small = competitive_ratios.shrunk(row, 1.05)
    assert small is not None
    assert competitive_ratios.ratio_of(row, small) >= 1.05
    assert len(small.requests) <= 4
    assert competitive_ratios.shrunk(row, 50.0) is None
