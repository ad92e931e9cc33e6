"""Runs independent tasks on all cores, with the same results as on one core.

Workers are forked: they share what is already loaded (a trace of a million requests), and receive only a task's index.
Results come back in the order of the tasks, whichever finishes first.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")


class RunFailed(RuntimeError):
    """One run failed; the message names it and the reason. A fault of Headway's, not a mistake of the user's."""


def spread(
    work: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    jobs: int | None = None,
    on_done: Callable[[], None] = lambda: None,
) -> list[Result]:
    """`[work(task) for task in tasks]` over `jobs` processes (None: one for each core this process may use).

    `work` may close over anything, for workers are forked; its results must pickle. `on_done` is called here, once for
    each task that ends. Where processes cannot fork (Windows), the tasks run one after the other.

    Raises:
        ValueError: `jobs` is below 1.
        RunFailed: a worker died.
        Exception: whatever `work` raised first; the tasks not yet begun are dropped.
    """
    jobs = cores() if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}")
    if min(jobs, len(tasks)) <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        return [_one(work, task, on_done) for task in tasks]
    context = multiprocessing.get_context("fork")
    _inherited.append((work, tasks))
    try:
        with ProcessPoolExecutor(min(jobs, len(tasks)), context, _die_at_once_when_interrupted) as pool:
            return _collect(pool, len(tasks), on_done)
    except BrokenProcessPool as broken:
        raise RunFailed("a worker process died (out of memory?): try --jobs 1 or fewer --requests") from broken
    finally:
        _inherited.pop()


def cores() -> int:
    """Cores this process may use, which in a container can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_inherited: list[tuple[Callable[[Any], Any], Sequence[Any]]] = []  # what forked workers find in their memory


def _one(work: Callable[[Task], Result], task: Task, on_done: Callable[[], None]) -> Result:
    result = work(task)
    on_done()
    return result


def _inherited_task(index: int) -> Any:
    work, tasks = _inherited[-1]
    return work(tasks[index])


def _collect(pool: ProcessPoolExecutor, tasks: int, on_done: Callable[[], None]) -> list[Any]:
    others = multiprocessing.active_children()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside other threads (a progress display, a BLAS pool). Ours hold no lock that a
        # worker takes: it computes and returns.
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        futures = [pool.submit(_inherited_task, index) for index in range(tasks)]
    try:
        for future in as_completed(futures):
            future.result()
            on_done()
    except BaseException:  # an interrupt too: the other results are not needed
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child not in others:
                child.terminate()
        raise
    return [future.result() for future in futures]


def _die_at_once_when_interrupted() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # silently: the parent reports it
