"""The traffic that the command line names: traces and workloads, read, cut, and at which loads they are replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from headway.bench.experiment.preparing import prepare
from headway.bench.metrics.run_metrics import Slo
from headway.bench.progress import say
from headway.bench.traces.adapters import with_adapters
from headway.bench.traces.finding import find_file
from headway.bench.traces.loading import LoadedTrace, load_trace
from headway.bench.traces.reshaping import head
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.bench.workloads import WORKLOADS
from headway.cli.command_options import LoadOptions, ReplicaOptions, TraceOptions
from headway.cli.modelled_replica import modelled_replica
from headway.simulator.replica import Replica
from headway.simulator.trace import Trace

DEFAULT_WORKLOAD = "chat-and-documents"
WORKLOAD_LOADS = (0.9,)  # unless a load is given: a generated rate means nothing on a replica it was not made for


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is replayed: `named` traces in turn (None: the default workload), how they are read, at which loads."""

    named: list[str] | None
    reading: TraceOptions
    loads: LoadOptions

    @property
    def names(self) -> list[str]:
        """Each trace or workload to replay, in order."""
        return self.named or [DEFAULT_WORKLOAD]

    def files(self) -> list[str]:
        """Every trace file that will be read.

        Raises:
            UserMistake: there is no such file.
        """
        return [str(find_file(name, tuple(WORKLOADS))) for name in self.named or [] if name not in WORKLOADS]

    def loads_of(self, name: str) -> tuple[float | None, ...]:
        """The loads to replay this one at, in order; None for a trace's own arrival times.

        Raises:
            UserMistake: as `parse_loads`.
        """
        loads = parse_loads(self.loads.load, self.loads.loads)
        return WORKLOAD_LOADS if name in WORKLOADS and loads == (None,) else loads

    def of_seed(self, number: int) -> Traffic:
        """The same with a seed that is so much higher."""
        return replace(self, reading=replace(self.reading, seed=self.reading.seed + number))

    def prepare(
        self, name: str, options: ReplicaOptions, slo: Slo, fleet: Sequence[Replica] | None = None
    ) -> tuple[Replica, Trace]:
        """The replica and the trace as it will be replayed; every change to the trace is said on stderr.

        Of a fleet it is the replica that holds the longest requests; None for the one that `options` describe.

        Raises:
            UserMistake: an option, a name or the trace is wrong.
        """
        loaded = read_trace(name, self.reading)
        with as_mistakes():
            servers = [modelled_replica(options)] if fleet is None else fleet
        return prepare(loaded, servers, slo, say, over_context=options.over_context.value, opened=self.loads.open_loop)


def read_trace(name: str, options: TraceOptions) -> LoadedTrace:
    """A trace or workload, its first requests only where the options say so; notes go to stderr.

    Raises:
        UserMistake: there is no such file, or a line is wrong.
    """
    count = options.requests
    loaded = load_trace(
        name,
        skip_bad_lines=options.skip_bad_lines,
        columns=options.columns,
        seed=options.seed,
        **({} if count is None else {"requests": count}),
    )
    for note in loaded.notes:
        say(note)
    trace = loaded.trace if count is None else head(loaded.trace, count)
    if options.adapters is not None:
        trace = with_adapters(trace, options.adapters, options.seed)
    return replace(loaded, trace=trace)


def parse_loads(load: str | None, loads: str | None) -> tuple[float | None, ...]:
    """The loads of `--load` or `--loads`, in order; (None,) for the trace's own times.

    Raises:
        UserMistake: both are given, or one is not a list of different positive shares.
    """
    if load is not None and loads is not None:
        raise UserMistake("give --load or --loads, not both: --loads 0.9,1.1 runs several")
    if load is not None:
        return (_share(load, "--load"),)
    if loads is None:
        return (None,)
    shares = tuple(_share(part, "--loads") for part in loads.split(","))
    if len(set(shares)) < len(shares):
        raise UserMistake(f"--loads {loads}: a load is there twice; keep one of each")
    return shares


def _share(text: str, option: str) -> float:
    example = "write a share of saturation, for example 0.9"
    try:
        share = float(text)
    except ValueError:
        raise UserMistake(f"{option}: {text.strip()!r} is not a number; {example}") from None
    if not 0 < share < math.inf:
        raise UserMistake(f"{option}: {text.strip()} is not above 0; {example}")
    if share > 20:
        raise UserMistake(f"{option}: {text.strip()} is {share:g} times saturation; {example}, not a percentage")
    return share
