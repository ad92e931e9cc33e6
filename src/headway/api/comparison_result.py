"""Compares policies on a trace, and holds what came out."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from rich.console import Console

from headway.api.replica_model import ReplicaModel
from headway.api.trace_sources import load_trace
from headway.bench.experiment.bundles import Bundle, chosen_names
from headway.bench.experiment.comparison import Comparison
from headway.bench.experiment.default_orderings import default_orderings
from headway.bench.experiment.fleets import DEFAULT_ROUTING, Fleet, equal_replicas, named_routings
from headway.bench.experiment.preparing import prepare
from headway.bench.experiment.repeats import Repeats
from headway.bench.experiment.request_table import COLUMNS, RequestTable, write_requests
from headway.bench.experiment.simulated_runs import Experiment
from headway.bench.experiment.simulated_runs import compare as run_experiment
from headway.bench.metrics.run_metrics import Slo
from headway.bench.output_files import replacing
from headway.bench.progress import progress as shown_progress
from headway.bench.progress import say
from headway.bench.report.headline import headline
from headway.bench.report.html_report import write_report
from headway.bench.report.markup import tag
from headway.bench.report.sections import results_table
from headway.bench.report.terminal_table import print_comparison
from headway.bench.traces.loading import LoadedTrace
from headway.bench.traces.reshaping import head
from headway.bench.user_mistake import UserMistake, whole
from headway.bench.workloads import WORKLOADS
from headway.policies.catalog import Kind
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace

if TYPE_CHECKING:
    import pandas

_DEFAULT_SLO = "ttft=2s,tpot=100ms"
_OVER_CONTEXT = ("error", "refuse", "cut")
_REPLICAS_MAX = 1_024
_WIDTH = 240  # of a printed table, in characters: no row is broken


@dataclass(frozen=True, slots=True)
class ComparisonResult:
    """What `compare` found: a run for each policy at each load.

    Attributes:
        comparison: all of it, as the JSON of `headway compare` has it.
        tables: per run, what happened to each request.
    """

    comparison: Comparison
    tables: Sequence[RequestTable]

    def rows(self) -> list[dict[str, Any]]:
        """A flat mapping for each run: `policy`, `load`, `ttft_seconds.mean`, … (docs/json.md has each field)."""
        return [dict(_flat(run)) for run in self.to_json()["runs"]]

    def to_dataframe(self) -> pandas.DataFrame:
        """`rows` as a table. Raises UserMistake where pandas is missing."""
        return _table(self.rows())

    def requests(self) -> pandas.DataFrame:
        """A row for each request of each run: times, replica, preemptions, cached tokens, outcome.

        Raises:
            UserMistake: pandas is missing; `requests_out` writes the same without it.
        """
        joined = {name: [value for table in self.tables for value in table.columns[name]] for name in COLUMNS}
        return _table(joined)

    def requests_out(self, path: str | os.PathLike[str]) -> None:
        """Write what `requests` gives to `.csv` or `.parquet`. Raises UserMistake where it cannot be written."""
        write_requests(self.tables, Path(path), "requests_out")

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write one self-contained HTML page with charts. Raises UserMistake where it cannot be written."""
        with replacing(Path(path), "report") as temporary:
            write_report(self.comparison, temporary)

    def to_json(self) -> dict[str, Any]:
        """What `headway compare --json` writes (docs/json.md)."""
        return self.comparison.to_json()

    def __str__(self) -> str:
        """The table of `headway compare`."""
        written = io.StringIO()
        print_comparison(self.comparison, Console(file=written, width=_WIDTH))
        return "\n".join(line.rstrip() for line in written.getvalue().splitlines())

    def _repr_html_(self) -> str:
        """The table, as a notebook shows it."""
        return str(tag("div", results_table(self.comparison), tag("p", headline(self.comparison)[0])))


def compare(
    trace: LoadedTrace | str | os.PathLike[str],
    *,
    orderings: Sequence[object] | None = None,
    loads: Sequence[float] | None = None,
    replica: ReplicaModel | None = None,
    replicas: int = 1,
    routings: Sequence[str] | None = None,
    admission: object = "greedy",
    preemption: object = "latest-admitted",
    prediction: object = "running-mean",
    requests: int | None = None,
    over_context: Literal["error", "refuse", "cut"] = "error",
    slo: str = _DEFAULT_SLO,
    seed: int = 0,
    repeats: int | None = None,
    jobs: int | None = None,
    progress: bool = True,
) -> ComparisonResult:
    """Replay a trace under several policies, in the simulator.

    A policy is a name (`headway policies`), a class, or an instance. A class is constructed for each run, with `costs`,
    `seed` and `truth` where its constructor has such keywords. An instance is copied for each run.

    Args:
        trace: from `load_trace`, or what `load_trace` reads.
        orderings: policies to compare; None for those that `headway compare` shows. Two of one name are told apart by a
            number.
        loads: shares of what the replica can serve; None for the trace's own arrival times, and 0.9 for a workload.
        replica: the engine; None for Llama-3.1-8B on one H100.
        replicas: how many of it, behind one queue.
        routings: with several, the routing policies to compare; None for `least-work`.
        admission: one for all runs.
        preemption: likewise.
        prediction: likewise.
        requests: only the first so many.
        over_context: what happens to requests longer than the replica holds: an error, or they are refused or cut.
        slo: what counts for goodput.
        seed: of everything random.
        repeats: how many seeds (of a workload given by its name) or blocks (of any other trace) the error bars rest on;
            None for no error bars. With them, `rows` has `intervals.…low` and `….high` of each number.
        jobs: processes; None for one a core. The result does not depend on it.
        progress: show on stderr what runs, where that is a terminal.

    Raises:
        UserMistake: a name, an option or the trace is wrong, or a policy of yours failed; one sentence.
    """
    loaded = trace if isinstance(trace, LoadedTrace) else load_trace(trace, requests=requests, seed=seed)
    if loads is None and not isinstance(trace, LoadedTrace) and str(trace) in WORKLOADS:
        loads = (0.9,)
    if requests is not None:
        whole("requests", requests, 1)
        loaded = replace(loaded, trace=head(loaded.trace, requests))
    for note in loaded.notes if progress else ():
        say(note)
    if not isinstance(slo, str):
        raise UserMistake(f"slo: {slo!r} is no text; write it like {_DEFAULT_SLO}")
    bounds = Slo.parse(slo)
    whole("seed", seed)
    if jobs is not None:
        whole("jobs", jobs, 1)
    if over_context not in _OVER_CONTEXT:
        raise UserMistake(f"over_context: {over_context!r} is not one of {', '.join(_OVER_CONTEXT)}")
    if not isinstance(replica, ReplicaModel | None):
        raise UserMistake(f"replica: {replica!r} is no hw.Replica; write replica=hw.Replica(hardware=..., model=...)")
    server = (replica or ReplicaModel()).simulated()
    fleet = _fleet(server, replicas, routings)

    def ready_on(one: LoadedTrace) -> tuple[Replica, Trace]:
        return prepare(one, [server], bounds, say if progress else lambda sentence: None, over_context=over_context)

    largest, ready = ready_on(loaded)
    further = []
    if repeats is not None and not isinstance(trace, LoadedTrace) and str(trace) in WORKLOADS:
        drawn = (load_trace(trace, requests=requests, seed=seed + number) for number in range(1, repeats))
        further = [ready_on(one)[1] for one in drawn]
    others = {"admission": admission, "preemption": preemption, "prediction": prediction}
    wanted = default_orderings(ready, largest, fleet) if orderings is None else orderings
    experiment = Experiment(
        ready,
        largest,
        _bundles(wanted, others),
        _checked_loads(loads),
        seed,
        bounds,
        fleet,
        keeps_requests=True,
        finds_own_load=True,
        repeats=None if repeats is None else Repeats(repeats, further),
    )
    comparison = run_experiment(
        experiment, jobs=jobs, progress=shown_progress if progress and sys.stderr.isatty() else None
    )
    return ComparisonResult(comparison, [run.requests for run in comparison.runs if run.requests is not None])


def _fleet(server: Replica, replicas: int, routings: Sequence[str] | None) -> Fleet | None:
    whole("replicas", replicas, 1, _REPLICAS_MAX)
    if isinstance(routings, str):
        raise UserMistake(f"routings is a list of names: write [{routings!r}]")
    if not all(isinstance(name, str) for name in routings or ()):
        raise UserMistake("routings: a routing policy is named, as headway policies lists them")
    if replicas == 1:
        if routings is not None:
            raise UserMistake("routings choose between several replicas; give replicas, too")
        return None
    return Fleet(equal_replicas(server, replicas), named_routings(list(routings or [DEFAULT_ROUTING])))


def _checked_loads(loads: object) -> tuple[float | None, ...]:
    if loads is None:
        return (None,)
    if isinstance(loads, str) or not isinstance(loads, Iterable):
        raise UserMistake(f"loads is a list of numbers: write [{loads}]")
    checked = []
    for load in loads:
        if isinstance(load, bool) or not isinstance(load, Real) or not 0 < float(load) <= 20:
            raise UserMistake(f"loads: {load!r} is no share of what the replica can serve; write for example 0.9")
        checked.append(float(load))
    if len(set(checked)) < len(checked) or not checked:
        raise UserMistake("loads: name at least one, and each once")
    return tuple(checked)


def _bundles(orderings: Sequence[object], others: Mapping[str, object]) -> list[Bundle]:
    if isinstance(orderings, str):
        raise UserMistake(f"orderings is a list of policies: write [{orderings!r}]")
    names, given = _named(others)
    if not isinstance(orderings, Iterable):
        raise UserMistake(f"orderings is a list of policies, not {orderings!r}")
    bundles: list[Bundle] = []
    for ordering in orderings:
        for one in chosen_names("ordering", "ordering", [ordering]) if isinstance(ordering, str) else [ordering]:
            name, own = _named({"ordering": one})
            label = _free(name["ordering"], [bundle.label for bundle in bundles])
            bundle = Bundle(label, **cast("dict[str, Any]", names | name), given={**given, **own})
            bundle.check()
            bundles.append(bundle)
    if not bundles:
        raise UserMistake("orderings: name at least one")
    return bundles


def _named(policies: Mapping[str, object]) -> tuple[dict[str, str], dict[Kind, object]]:
    """Kind → what to call its policy, and kind → the policy itself where it is no name."""
    names, given = {}, {}
    for kind, policy in policies.items():
        if isinstance(policy, str):
            names[kind] = policy
        else:
            names[kind] = policy.__name__ if isinstance(policy, type) else type(policy).__name__
            given[cast(Kind, kind)] = policy
    return names, given


def _free(name: str, taken: Sequence[str]) -> str:
    """The name, with a number behind it where it is taken."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free


def _flat(values: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, Any]]:
    """Nested fields as `outer.inner`; lists are left out."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{inside}{name}.")
        elif not isinstance(value, list | tuple):
            yield f"{inside}{name}", value


def _table(columns: Any) -> pandas.DataFrame:
    try:
        from pandas import DataFrame  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as missing:
        raise UserMistake("tables need pandas: pip install 'headway[notebook]'") from missing
    return DataFrame(columns)
