"""Shell completion of names: policies, workloads, traces, hardware and models.

Each list is imported only when a shell asks for it, so that `--help` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from headway.policies.catalog import Kind

Completer: TypeAlias = Callable[[str], list[str]]
"""From what was typed so far to the names that begin with it."""


def policies_of(kind: Kind, *others: str) -> Completer:
    """Completes a policy's name or alias, behind a slash too (fair-share/smallest-volume-first), or one of `others`."""

    def complete(incomplete: str) -> list[str]:
        outer, slash, _ = incomplete.rpartition("/")
        return _fitting([*(f"{outer}{slash}{name}" for name in _names_and_aliases(kind)), *others], incomplete)

    return complete


def complete_policy(incomplete: str) -> list[str]:
    """Completes the name of a policy of any kind."""
    from headway.policies.catalog import ALL_KINDS

    return _fitting(dict.fromkeys(name for kind in ALL_KINDS for name in _names_and_aliases(kind)), incomplete)


def complete_workload(incomplete: str) -> list[str]:
    """Completes the name of a built-in workload."""
    from headway.bench.workloads import WORKLOADS

    return _fitting(WORKLOADS, incomplete)


def complete_trace(incomplete: str) -> list[str]:
    """Completes a workload's name, or a trace's in the folder HEADWAY_TRACES; the shell itself knows other files."""
    from headway.bench.traces.finding import trace_names
    from headway.bench.workloads import WORKLOADS

    return _fitting([*WORKLOADS, *trace_names()], incomplete)


def complete_hardware(incomplete: str) -> list[str]:
    """Completes the name of a GPU profile."""
    from headway.simulator.hardware import hardware_names

    return _fitting(hardware_names(), incomplete)


def complete_model(incomplete: str) -> list[str]:
    """Completes the name of a model profile."""
    from headway.simulator.models import model_names

    return _fitting(model_names(), incomplete)


def _names_and_aliases(kind: Kind) -> list[str]:
    from headway.policies.catalog import aliases, names

    known = names(kind)
    return [*known, *(alias for name in known for alias in aliases(kind, name))]


def _fitting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
