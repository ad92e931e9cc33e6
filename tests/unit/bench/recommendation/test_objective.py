"""Objectives: what they measure, how they are read, and the sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.objective import OperatorObjective, RequestTimes, read_objective
from headway.bench.user_mistake import UserMistake
from headway.config.wanted_objective import MEASURES, Bound

SLO = Slo(ttft_seconds=2.0)


def served(ttft: list[float]) -> RequestTimes:
    seconds = np.array(ttft)
    return RequestTimes(seconds, seconds + 10, (seconds + 10) / 5, np.full(len(ttft), 0.05))


def scores(objective: OperatorObjective, *candidates: list[float]) -> list[float]:
    each = [objective.columns(served(one)) for one in candidates]
    columns = {name: np.array([one[name] for one in each]) for name in MEASURES}
    return [float(score) for score in np.exp(objective.scores(columns))]


def test_a_score_is_how_many_times_worse_than_the_best() -> None:
    assert scores(read_objective("mean-ttft", SLO), [1.0, 3.0], [4.0, 4.0]) == pytest.approx([1.0, 2.0])
    assert scores(read_objective("e2e", SLO), [1.0, 3.0], [8.0, 16.0]) == pytest.approx([1.0, 22 / 12])


def test_the_99th_percentile_and_the_longest() -> None:
    plain, one_long = [1.0] * 200, [1.0] * 199 + [50.0]
    assert scores(read_objective("p99-ttft", SLO), plain, one_long) == pytest.approx([1.0, 1.0])
    longest = OperatorObjective("x", {"longest-ttft": 1.0}, SLO)
    assert scores(longest, plain, one_long) == pytest.approx([1.0, 50.0])


def test_goodput_counts_the_requests_that_miss() -> None:
    objective = read_objective("goodput(ttft=2s)", Slo(ttft_seconds=9.0))
    assert scores(objective, [1.0, 1.0, 1.0, 3.0], [3.0, 3.0, 1.0, 1.0]) == pytest.approx([1.0, 2.0])
    assert scores(objective, [1.0] * 4, [1.0, 1.0, 1.0, 3.0]) == pytest.approx([1.0, 1.0]), (
        "none missed of four: a quarter"
    )


def test_balanced_is_the_geometric_mean_of_four_distances() -> None:
    fast, slow = [1.0] * 100, [4.0] * 100
    expected = (4.0 * 4.0 * (14 / 11) * 100.0) ** 0.25
    assert scores(read_objective("balanced", SLO), fast, slow) == pytest.approx([1.0, expected])


def test_a_file_gives_weights_and_bounds(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('weights = {"mean-ttft" = 3.0, "p99-ttft" = 1}\nat_most = {"longest-ttft" = {value = 60}}\n')
    objective = read_objective(str(file), SLO)
    assert objective.weights == {"mean-ttft": 3.0, "p99-ttft": 1.0}
    assert objective.bounds == {"longest-ttft": Bound(value=60.0)}
    assert not objective.rests_on_the_tail
    assert Bound(times_fcfs=1.2).limit(10.0) == 12.0
    assert Bound(value=3.0).limit(10.0) == 3.0


def test_only_the_ratios_of_weights_count() -> None:
    days = [1.0, 3.0], [4.0, 4.0]
    plain = scores(OperatorObjective("x", {"mean-ttft": 1.0, "e2e": 3.0}, SLO), *days)
    for times in (1e-300, 5e307):
        weights = {"mean-ttft": 1.0 * times, "e2e": 3.0 * times}
        assert scores(OperatorObjective("x", weights, SLO), *days) == pytest.approx(plain)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it has no weights"),
        ("wieghts = {}", "'wieghts' is no key of an objective"),
        ("weights = 3", "weights must be a table of measures"),
        ('weights = {"mean-tftt" = 1}', r"weights\.mean-tftt is no measure.*mean-ttft"),
        ('weights = {"mean-ttft" = 0}', "must be a number above 0, got 0"),
        ('weights = {"mean-ttft" = true}', "must be a number above 0, got True"),
        ('weights = {"mean-ttft" = 1' + 400 * "0" + "}", "must be a number above 0, got 10000"),
        ('weights = {"mean-ttft" = 1}\nat_most = {"p99-ttft" = 3}', r"must be \{times_fcfs = 1.2\}"),
        ('weights = {"mean-ttft" = 1}\nat_most = {"p99-ttft" = {value = -1}}', "must be a number above 0, got -1"),
    ],
)
def test_a_mistake_in_a_file_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UserMistake, match=sentence):
        read_objective(str(file), SLO)


def test_a_name_that_is_mistyped_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserMistake, match=r"'mean-tftt' is unknown.*mean-ttft"):
        read_objective("mean-tftt", SLO)
    with pytest.raises(UserMistake, match=r"--objective 'goodput\(ttft=2\)': slo: ttft=2 is not a number"):
        read_objective("goodput(ttft=2)", SLO)
    with pytest.raises(UserMistake) as found:
        read_objective("Balanced", SLO)
    assert str(found.value).count("choose from") == 1
