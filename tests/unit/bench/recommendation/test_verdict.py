"""Requests that can never fit hide no difference between candidates; of sessions it is said that verdicts hold less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headway.bench.experiment.bundles import Bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation import verdict
from headway.bench.recommendation.objective import RequestTimes, read_objective
from headway.bench.recommendation.recommendation import Recommendation, Task
from headway.bench.recommendation.verdict import recommend, rows_of, served_by_some
from headway.simulator.replica import replica
from headway.simulator.trace import Trace


def times(ttft: list[float], lost: list[int]) -> RequestTimes:
    waits = np.array(ttft)
    tpot = np.full(len(waits), 0.01)
    tpot[lost] = np.inf
    return RequestTimes(waits, waits + 1, waits + 1, tpot)


def test_what_no_candidate_serves_is_left_out_and_the_rest_stays_in_order() -> None:
    both = [times([1.0, 90.0, 3.0, 90.0], [1, 3]), times([2.0, 90.0, 4.0, 5.0], [1])]
    kept = served_by_some(both)
    assert kept.tolist() == [0, 2, 3]
    assert rows_of(both[1], kept).ttft_seconds.tolist() == [2.0, 4.0, 5.0]
    assert served_by_some([times([1.0, 2.0], [0, 1])]).tolist() == [0, 1], "where nothing is served, all count"


def test_refused_requests_change_no_measure() -> None:
    random = np.random.default_rng(0)
    arrived = np.cumsum(random.exponential(0.02, 200))
    prompts, outputs = random.integers(10, 3_000, 200), random.integers(1, 60, 200)
    huge = prompts.copy()
    huge[::20] = 10_000_000
    objective = read_objective("mean-ttft", Slo(ttft_seconds=1.0))
    orders = [Bundle("fcfs"), Bundle("gittins", "gittins")]

    def measures(those: np.ndarray) -> dict[str, float]:
        kept = those < 10_000_000
        trace = Trace("some", arrived, those, outputs)
        alone = Trace("some", arrived[kept], those[kept], outputs[kept])
        found, plain = (
            recommend(Task(one, replica("h100", "llama-3.1-8b"), objective, Bundle("fcfs"), orders), jobs=1)
            for one in (trace, alone)
        )
        assert found.competing[1].measures == plain.competing[1].measures
        return dict(found.competing[1].measures)

    assert measures(huge)["mean-ttft"] < 5.0
    measures(prompts)


def test_a_closed_loop_is_said_to_hold_less_well() -> None:
    random = np.random.default_rng(1)
    arrived = np.sort(random.uniform(0, 5.0, 120))
    prompts, outputs = random.integers(10, 3_000, 120), random.integers(1, 60, 120)
    session, turn = np.arange(120) // 2, np.arange(120) % 2
    loop = Trace("loop", arrived, prompts, outputs, session=session, turn=turn, think_seconds=np.full(120, 0.1))
    objective = read_objective("mean-ttft", Slo(ttft_seconds=1.0))

    def said(trace: Trace) -> str:
        task = Task(trace, replica("h100", "llama-3.1-8b"), objective, Bundle("fcfs"), [Bundle("fcfs")])
        return " ".join(recommend(task, jobs=1).sentences())

    assert "sessions wait for their answers" in said(loop)
    assert "sessions wait" not in said(Trace("open", arrived, prompts, outputs))


def test_an_order_without_a_bound_on_waits_is_not_recommended_for_a_tail() -> None:
    """Its tail is half as long in every stretch, and still the default is kept; for a mean it is taken."""
    arrived = np.arange(2_000.0)
    waits = np.random.default_rng(2).exponential(1.0, 2_000)
    trace = Trace("some", arrived, np.full(2_000, 100), np.full(2_000, 10))

    def found(name: str, better: str) -> Recommendation:
        objective = read_objective(name, Slo(ttft_seconds=1.0))
        task = Task(trace, replica("h100", "llama-3.1-8b"), objective, Bundle("fcfs"))
        rivals = {"fcfs": 2.0 * waits, "highest-response-ratio": 1.5 * waits, better: 0.5 * waits}
        metrics: Any = None
        made = [
            verdict._candidate(objective, Bundle(order, order), metrics, times(list(values), []))
            for order, values in rivals.items()
        ]
        return verdict._judged(task, arrived, made[0], made, None, "", "highest-response-ratio")

    tail = found("p99-ttft", "shortest-job-first")
    assert tail.verdict.label == "highest-response-ratio"
    assert "waits have no bound, so highest-response-ratio is kept" in " ".join(tail.sentences())
    assert found("mean-ttft", "shortest-job-first").verdict.label == "shortest-job-first"
    assert found("p99-ttft", "boost").verdict.label == "boost"


def judged(text: str, rivals: dict[str, float], folder: Path) -> Recommendation:
    """Of a day on which each order's waits are so many times the same ones."""
    arrived = np.arange(2_000.0)
    waits = np.random.default_rng(2).exponential(1.0, 2_000)
    file = folder / "mine.toml"
    file.write_text(text)
    objective = read_objective(str(file), Slo(ttft_seconds=1.0))
    trace = Trace("some", arrived, np.full(2_000, 100), np.full(2_000, 10))
    task = Task(trace, replica("h100", "llama-3.1-8b"), objective, Bundle("fcfs"))
    metrics: Any = None
    made = [
        verdict._candidate(objective, Bundle(order, order), metrics, times(list(factor * waits), []))
        for order, factor in rivals.items()
    ]
    return verdict._judged(task, arrived, made[0], made, None, "", "highest-response-ratio")


TAIL = 'weights = {"p99-ttft" = 1}\nat_most = {"longest-ttft" = {times_fcfs = %s}}\n'


def test_an_order_without_a_bound_on_waits_is_not_taken_where_the_default_breaks_a_bound(tmp_path: Path) -> None:
    rivals = {"fcfs": 1.0, "highest-response-ratio": 3.0, "gittins": 0.5, "boost": 0.8}
    assert judged(TAIL % 1.5, rivals, tmp_path).verdict.label == "boost"
    assert judged(TAIL % 0.6, rivals, tmp_path).verdict.label == "gittins", "no other keeps the bound"


def test_it_does_not_say_that_the_verdict_differs_from_what_breaks_a_bound(tmp_path: Path) -> None:
    """Those beyond a bound are not compared, so nothing is said of how far they are."""
    rivals = {"fcfs": 1.0, "highest-response-ratio": 3.0, "boost": 2.0}
    alone, none = (judged(TAIL % times_fcfs, rivals, tmp_path) for times_fcfs in (1.5, 0.1))
    assert not [sentence for sentence in [*alone.sentences(), *none.sentences()] if "by more than chance" in sentence]
    two = " ".join(judged(TAIL % 2.5, rivals, tmp_path).sentences())
    assert "It differs from the other within the bounds by more than chance." in two


def test_what_is_like_a_better_one_is_not_said_to_be_like_the_verdict(tmp_path: Path) -> None:
    rivals = {"fcfs": 2.0, "highest-response-ratio": 1.5, "gittins": 0.5, "shortest-job-first": 0.5}
    found = judged('weights = {"p99-ttft" = 1}\n', rivals, tmp_path)
    assert found.verdict.label == "highest-response-ratio"
    assert "do not differ from gittins, the best one, by more than chance: shortest-job-first" in " ".join(
        found.sentences()
    )
