"""The simulated fleet that the command line describes: equal replicas by their number, or a file of unequal ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from headway.bench.experiment.fleets import DEFAULT_ROUTING, Fleet, equal_replicas, named_reschedulings, named_routings
from headway.bench.user_mistake import UserMistake, as_mistakes
from headway.cli.command_options import FleetOptions, Precision, ReplicaOptions
from headway.cli.modelled_replica import modelled_replica
from headway.config.toml_file import read_toml
from headway.config.typed_values import Bounds, read_table
from headway.simulator.arrivals import FOREVER, LONGEST_DAYS
from headway.simulator.fleet_members import Outage, check_outages
from headway.simulator.fleet_rescheduling import KvLink
from headway.simulator.hardware import BYTES
from headway.simulator.replica import Replica
from headway.simulator.replica_adapters import AdapterSizes, with_adapters
from headway.simulator.step_time import PS_PER_SECOND

REPLICAS_MAX = 1_024
LONGEST_SECONDS = 86_400.0 * LONGEST_DAYS

LOADING_GIB_PER_SECOND = 1.0
"""At which a start reads weights into each GPU: an assumption of ours, measured nowhere, as it depends on the disk or
network that weights come from. The engine's own start (compilation, CUDA graphs) is left out. `start_seconds` replaces
what follows from it."""


@dataclass(frozen=True, slots=True)
class _FailureTable:
    """One failure of one replica; it drains before, and without `down_seconds` never serves again."""

    at_seconds: float
    replica: int = 0
    down_seconds: float | None = None
    drain_seconds: Annotated[float, Bounds(least=0, most=86_400)] = 0.0


@dataclass(frozen=True, slots=True)
class _FleetTable:
    """One table [[replica]] of a fleet file: so many equal replicas."""

    name: str = "replica"
    count: int = 1
    hardware: str | None = None
    model: str | None = None
    precision: Literal["bf16", "fp8"] | None = None
    tp: int | None = None
    adapters: AdapterSizes | None = None
    start_seconds: Annotated[float, Bounds(least=0, most=86_400)] | None = None
    failures: tuple[_FailureTable, ...] = ()


def modelled_fleet(options: FleetOptions, replica: ReplicaOptions) -> Fleet | None:
    """The fleet, or None where the command line names one replica.

    Raises:
        UserMistake: options contradict each other, or the file is wrong.
        ValueError: a profile is unknown or broken, a limit is wrong, or a model does not fit its GPU.
    """
    if options.replicas is None and options.fleet is None:
        given = {
            "--routing": options.routing,
            "--rescheduling": options.rescheduling,
            "--migration-gib": options.migration_gib,
            "--queue": options.queue,
            "--signal-age": options.signal_age,
        }
        useless = next((name for name, value in given.items() if value is not None), None)
        if useless is not None:
            raise UserMistake(f"{useless} is for several replicas: give --replicas N or --fleet FILE.toml too")
        return None
    if options.replicas is not None and options.fleet is not None:
        raise UserMistake("give --replicas or --fleet, not both: the file says how many replicas there are")
    if options.fleet is not None:
        replicas, outages = _read_fleet(options.fleet, replica)
    else:
        outages = {}
        replicas = equal_replicas(modelled_replica(replica), _checked_count(options.replicas or 0, "--replicas"))
    return Fleet(
        replicas,
        routings=named_routings(options.routing or [DEFAULT_ROUTING]),
        queue="gateway" if options.queue is None else options.queue.value,
        outages=outages,
        reschedulings=named_reschedulings(options.rescheduling) if options.rescheduling else (),
        link=_link(options.migration_gib),
        signal_seconds=0.0 if options.signal_age is None else _seconds(options.signal_age),
    )


def _link(gib_per_second: float | None) -> KvLink:
    if gib_per_second is None:
        return KvLink()
    if not 0.001 <= gib_per_second <= 10_000:
        raise UserMistake(f"--migration-gib: a link copies from 0.001 to 10000 GiB/s, got {gib_per_second:g}")
    return KvLink(bytes_per_second=gib_per_second * (1 << 30))


def _read_fleet(path: Path, base: ReplicaOptions) -> tuple[dict[str, Replica], dict[str, tuple[Outage, ...]]]:
    label = f"--fleet {path}"
    if base.calibration is not None:
        raise UserMistake("give --fleet or --calibration, not both: a fleet file names hardware and models")
    with as_mistakes():
        content = read_toml(path, label)
    tables = content.pop("replica", None)
    if content:
        raise UserMistake(f"{label}: {next(iter(content))!r} is no key of a fleet file; write tables [[replica]]")
    if not isinstance(tables, list) or not tables:
        raise UserMistake(f"{label}: it names no replica; write a table [[replica]]")
    replicas: dict[str, Replica] = {}
    outages: dict[str, tuple[Outage, ...]] = {}
    for number, table in enumerate(tables):
        where = f"{label}: replica[{number}]"
        if not isinstance(table, dict):
            raise UserMistake(f"{where} must be a table; write [[replica]]")
        try:
            _add(read_table(_FleetTable, table), base, replicas, outages)
        except ValueError as mistake:
            raise UserMistake(f"{where}: {mistake}") from None
    _checked_count(len(replicas), label)
    return replicas, outages


def _add(
    table: _FleetTable,
    base: ReplicaOptions,
    replicas: dict[str, Replica],
    outages: dict[str, tuple[Outage, ...]],
) -> None:
    """Add the replicas of one table. Raises ValueError with one sentence."""
    _checked_count(table.count, "count")
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", table.name) is None:
        raise ValueError(f"name must be of letters, digits, dots and dashes, got {table.name!r}")
    one = modelled_replica(
        replace(
            base,
            hardware=table.hardware or base.hardware,
            model=table.model or base.model,
            precision=base.precision if table.precision is None else Precision(table.precision),
            tp=base.tp if table.tp is None else table.tp,
        )
    )
    if table.adapters is not None:
        one = with_adapters(one, table.adapters)
    first = sum(name.rpartition("-")[0] == table.name for name in replicas)
    names = [f"{table.name}-{first + number}" for number in range(table.count)]
    replicas |= dict.fromkeys(names, one)
    start_seconds = loading_seconds(one) if table.start_seconds is None else table.start_seconds
    for number, failure in enumerate(table.failures):
        where = f"failures[{number}]"
        if not 0 <= failure.replica < table.count:
            raise ValueError(f"{where}.replica must be one of 0 to {table.count - 1}, got {failure.replica}")
        if not 0 <= failure.at_seconds <= LONGEST_SECONDS:
            raise ValueError(f"{where}.at_seconds must be from 0 to {LONGEST_SECONDS:,.0f}, got {failure.at_seconds:g}")
        if failure.down_seconds is not None and not 0 <= failure.down_seconds <= LONGEST_SECONDS:
            raise ValueError(f"{where}.down_seconds must not be negative, got {failure.down_seconds:g}")
        name = names[failure.replica]
        outages[name] = (*outages.get(name, ()), _outage(failure, start_seconds))
    for name in names:
        check_outages(name, outages.get(name, ()))


def _outage(failure: _FailureTable, start_seconds: float) -> Outage:
    from_ps, notice_ps = round(failure.at_seconds * PS_PER_SECOND), round(failure.drain_seconds * PS_PER_SECOND)
    if failure.down_seconds is None:
        return Outage(from_ps, FOREVER, notice_ps)
    down_ps = max(1, round((failure.down_seconds + start_seconds) * PS_PER_SECOND))
    return Outage(from_ps, from_ps + down_ps, notice_ps)


def loading_seconds(replica: Replica) -> float:
    """What a start costs: its weights read into each of its GPUs."""
    gib = replica.model.weight_bytes(BYTES[replica.precision]) / replica.tp / (1 << 30)
    return gib / LOADING_GIB_PER_SECOND


def _checked_count(count: int, where: str) -> int:
    if not 1 <= count <= REPLICAS_MAX:
        raise UserMistake(f"{where}: a fleet has from 1 to {REPLICAS_MAX} replicas, got {count}")
    return count


def _seconds(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(ms|s)\s*", text)
    seconds = float(match[1]) / (1000 if match[2] == "ms" else 1) if match else -1.0
    if not (seconds == 0 or 0.001 <= seconds <= 3600):
        raise UserMistake(f"--signal-age: {text!r} is no age from 1ms to 3600s; write it like 1s or 500ms, 0s for none")
    return seconds


def fleet_files(options: FleetOptions) -> Sequence[str]:
    """The fleet file, where one is named."""
    return [] if options.fleet is None else [str(options.fleet)]
