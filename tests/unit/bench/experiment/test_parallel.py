"""Tasks in several processes: results in order, failures at once, no hang."""

from __future__ import annotations

import os
import time

import pytest

from headway.bench.experiment.parallel import RunFailed, cores, spread


def test_results_come_in_the_order_of_the_tasks_whoever_is_first() -> None:
    def work(task: int) -> tuple[int, int]:
        time.sleep(0.05 if task == 0 else 0.0)
        return task * task, os.getpid()

    results = spread(work, range(8), jobs=2)
    assert [value for value, _ in results] == [task * task for task in range(8)]
    assert os.getpid() not in {pid for _, pid in results}


def test_one_job_runs_here() -> None:
    assert spread(lambda _: os.getpid(), [1, 2], jobs=1) == [os.getpid()] * 2


def test_no_tasks_no_results() -> None:
    assert spread(str, [], jobs=2) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_end_is_told(jobs: int) -> None:
    ends = []
    spread(lambda task: task, range(5), jobs=jobs, on_done=lambda: ends.append(1))
    assert len(ends) == 5


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_failure_comes_up_with_its_own_words(jobs: int) -> None:
    def work(task: int) -> int:
        if task == 3:
            raise ValueError("the third is bad")
        return task

    with pytest.raises(ValueError, match="the third is bad"):
        spread(work, range(6), jobs=jobs)


def test_a_dead_worker_is_a_failure_not_a_hang() -> None:
    def work(task: int) -> int:
        if task == 1:
            os._exit(9)
        return task

    with pytest.raises(RunFailed, match="worker process died"):
        spread(work, range(4), jobs=2)


def test_a_failure_does_not_wait_for_the_others() -> None:
    def work(task: int) -> int:
        if task == 0:
            raise ValueError("at once")
        time.sleep(60)
        return task

    began = time.monotonic()
    with pytest.raises(ValueError, match="at once"):
        spread(work, range(4), jobs=2)
    assert time.monotonic() - began < 30


def test_no_jobs_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="jobs must be at least 1"):
        spread(str, [1], jobs=0)
    assert cores() >= 1
