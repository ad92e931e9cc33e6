"""How many small faults do the tests find? A seeded sample of mutants, room by room.

    python -m benchmarks.studies.mutants policies [--sample 100] [--seed 1] [--jobs 2] [--seconds 20] [--but laws]

One pytest process collects a room's tests and runs them once, to see which functions each of them calls. Then, for each
mutant, a fork of it puts the fault in and runs the tests that call the function, the quickest first, until one fails.
A mutant that outlasts `--seconds` of tests is alive if none has failed. Tests that take more than ten seconds are left
out. Property tests draw 25 examples, the same every time.

`equivalents.txt` lists mutants that change nothing that anything can see, with the reason. Those that are neither
killed nor listed are printed: write a test, or list them.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies.mutants.mutations import Mutant, mutants_of, mutated, noting_calls
from benchmarks.studies.mutants.transplant import transplant

HERE = Path(__file__).parent
ROOMS: dict[str, tuple[str, ...]] = {
    "policies": ("tests/unit/policies", "tests/unit/scheduling/test_equals.py"),
    "scheduling": (
        "tests/unit/scheduling",
        "tests/unit/testing",
        "tests/unit/tuning/test_feedback.py",
        "tests/unit/vllm_plugin/test_fallback.py",
    ),
    "simulator": ("tests/unit/simulator", "tests/unit/scheduling/test_equals.py", "tests/days/test_golden_days.py"),
    "gateway/queueing": ("tests/unit/gateway/queueing", "tests/gateway/queueing"),
    "vllm_plugin": ("tests/unit/vllm_plugin",),
    "bounds": ("tests/unit/bounds",),
}
"""Room -> tests that may find its faults."""
_EXAMPLES = 25
UNTESTED = ("policies/pages.py", "policies/contracts.py")  # documents; protocols
_SLOWEST_TEST_SECONDS = 10.0
_NOTE = "_note_call"  # what functions call while it is seen which test calls which


class Driver:
    """A pytest plugin: instead of a test run, one run to learn what calls what, then a fork for each mutant."""

    def __init__(self, room: str, sample: int, seed: int, jobs: int, seconds: float) -> None:
        self._folder = f"src/headway/{room}"
        self._sample, self._seed, self._jobs, self._seconds = sample, seed, jobs, seconds
        self.outcomes: list[tuple[Mutant, str]] = []
        self.possible = 0
        self._failed = False
        self._files: set[str] = set()

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Let no property test draw more than a few examples, whatever it asks for."""
        from hypothesis import settings

        for item in items:
            wanted = getattr(getattr(item, "obj", None), "_hypothesis_internal_use_settings", None)
            if wanted is not None and wanted.max_examples > _EXAMPLES:
                item.obj._hypothesis_internal_use_settings = settings(wanted, max_examples=_EXAMPLES)  # type: ignore[attr-defined]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        self._failed = self._failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Everything happens here."""
        mutants = self._draw()
        self._files = {mutant.path for mutant in mutants}
        called, seconds = self._baseline(session.items)
        waiting, running = list(mutants), dict[int, tuple[Mutant, float]]()
        while waiting or running:
            while waiting and len(running) < self._jobs:
                mutant = waiting.pop()
                items = self._tests_of(mutant, called, seconds)
                usual = min(self._seconds, sum(seconds[item] for item in items))
                child = os.fork()
                if not child:
                    most = math.ceil(5.0 + 6.0 * usual)  # of processor time: other programs may run beside
                    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
                    os._exit(self._try(mutant, items))
                running[child] = (mutant, time.monotonic() + 30.0 + 15.0 * usual)  # for one that waits for ever
            self._reap(running)
        return True

    def _draw(self) -> list[Mutant]:
        paths = sorted(str(path) for path in Path(self._folder).rglob("*.py"))
        everything = [mutant for path in paths if not path.endswith(UNTESTED) for mutant in mutants_of(path)]
        self.possible = len(everything)
        return random.Random(self._seed).sample(everything, min(self._sample, len(everything)))

    def _baseline(self, items: list[pytest.Item]) -> tuple[dict[tuple[str, str], list[Any]], dict[Any, float]]:
        """Which tests call which function, and what each takes. Tests that fail as it is are left out."""
        called: dict[tuple[str, str], list[Any]] = {}
        seconds: dict[Any, float] = {}
        seen: set[tuple[str, str]] = set()
        for path in self._files:
            module = sys.modules.get(_module_name(path))
            if module is not None:
                notes = {_NOTE: lambda name, path=path: seen.add((path, name))}
                vars(module).update(notes)
                transplant(module, noting_calls(path, _NOTE), notes)
        for item in items:
            self._failed = False
            seen.clear()
            began = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            took = time.process_time() - began
            if self._failed or took > _SLOWEST_TEST_SECONDS:
                print(f"\nleft out: {item.nodeid} ({'fails' if self._failed else f'{took:.0f} s'})")
                continue
            seconds[item] = took
            for function in seen:
                called.setdefault(function, []).append(item)
        return called, seconds

    def _tests_of(
        self, mutant: Mutant, called: dict[tuple[str, str], list[Any]], seconds: dict[Any, float]
    ) -> list[Any]:
        near = dict.fromkeys(
            item
            for (path, name), items in called.items()
            if path == mutant.path and (name == mutant.scope or name.startswith(f"{mutant.scope}."))
            for item in items
        )
        if (mutant.path, mutant.scope) in called:
            return sorted(near, key=lambda item: seconds[item])
        # Of a module or a class: whatever calls anything in it, then all others, which may read what it defines.
        near |= dict.fromkeys(item for (path, _), items in called.items() if path == mutant.path for item in items)
        return sorted(seconds, key=lambda item: (item not in near, seconds[item]))

    def _try(self, mutant: Mutant, items: list[Any]) -> int:
        """In a fork: 0 if all tests pass, 1 if one fails, 2 if the mutant could not be put in."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        name = _module_name(mutant.path)
        if name not in sys.modules:  # no test loads it
            return 0
        try:
            if not transplant(sys.modules[name], mutated(mutant)):
                return 2
        except Exception:  # it cannot even be loaded: any test fails
            return 1
        deadline = time.process_time() + self._seconds
        for item in items:
            self._failed = False
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            if self._failed:
                return 1
            if time.process_time() > deadline:
                break
        return 0

    def _reap(self, running: dict[int, tuple[Mutant, float]]) -> None:
        time.sleep(0.02)
        for child, (mutant, deadline) in list(running.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            outcome = ""
            if done:
                outcome = {0: "alive", 1: "killed", 2: "not put in"}.get(os.waitstatus_to_exitcode(status), "killed")
            elif time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                outcome = "killed"  # it does not end
            if outcome:
                del running[child]
                self.outcomes.append((mutant, outcome))
                print(f"{len(self.outcomes)} {outcome}: {mutant.line}: {mutant.name}", file=sys.stderr, flush=True)


def _module_name(path: str) -> str:
    return path.removeprefix("src/").removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def equivalents() -> dict[str, str]:
    """Mutant → why it changes nothing."""
    lines = (HERE / "equivalents.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line and not line.startswith("#")]
    return dict(zip(kept[::2], (why.strip() for why in kept[1::2]), strict=True))


def interval(killed: int, tried: int) -> tuple[float, float]:
    """95 % confidence interval of a share (Wilson, 1927)."""
    z, share = 1.96, killed / tried
    middle = share + z * z / (2 * tried)
    spread = z * math.sqrt(share * (1 - share) / tried + z * z / (4 * tried * tried))
    return (middle - spread) / (1 + z * z / tried), (middle + spread) / (1 + z * z / tried)


def _positive(number: Callable[[str], float]) -> Callable[[str], float]:
    def read(text: str) -> float:
        found = number(text)
        if not found > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return found

    return read


def main() -> None:
    """One room."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("room", choices=ROOMS)
    parser.add_argument("--sample", type=_positive(int), default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=_positive(int), default=2)
    parser.add_argument("--seconds", type=_positive(float), default=20.0)
    parser.add_argument("--but", default="", help="leave out tests whose names match (pytest's -k)")
    asked = parser.parse_args()
    driver = Driver(asked.room, asked.sample, asked.seed, asked.jobs, asked.seconds)
    chosen = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", *ROOMS[asked.room]]
    if asked.but:
        chosen += ["-k", f"not ({asked.but})"]
    pytest.main(chosen, plugins=[driver])
    known = equivalents()
    alive = [mutant for mutant, outcome in driver.outcomes if outcome == "alive"]
    equivalent = [mutant for mutant in alive if mutant.name in known]
    killed = sum(outcome == "killed" for _, outcome in driver.outcomes)
    tried = killed + len(alive) - len(equivalent)
    low, high = interval(killed, tried)
    drawn = len(driver.outcomes)
    print(f"\n{asked.room}: {driver.possible} mutants, {drawn} drawn (seed {asked.seed}), {killed} killed")
    print(f"{len(equivalent)} equivalent; of the other {tried}: {killed / tried:.0%} killed ({low:.0%} to {high:.0%})")
    shares = f"{killed / tried:.0%} | {low:.0%}–{high:.0%}"
    print(f"| {asked.room} | {driver.possible:,} | {drawn} | {len(equivalent)} | {killed} | {shares} |")
    for mutant in sorted(set(alive) - set(equivalent)):
        print(f"alive: {mutant.path}:{mutant.line} {mutant.name}")


if __name__ == "__main__":
    main()
