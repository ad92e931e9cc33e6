"""Contracts: every optional power is listed for authors, and no policy of the catalogue has half of one."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import pytest

from headway.domain.estimate import GeometricEstimate, PointEstimate, law_moves, remaining_survival, remaining_survivals
from headway.domain.event import Arrived, Event
from headway.domain.request import Request
from headway.policies import contracts
from headway.policies.catalog import ALL_KINDS, ROOMS, Kind, find
from headway.policies.contracts import DispatchListener, Listener, RedrawnOrdering, Retunable, Stateful, tunables
from headway.policies.event_fanout import EventFanout
from headway.policies.outside_policies import load
from headway.testing.strategies import EmpiricalEstimate

EVERY: list[tuple[Kind, str]] = [(kind, name) for kind in ALL_KINDS for name in ROOMS[kind]]
POWERS = ("Listener", "RedrawnOrdering", "BackfillingAdmission", "DispatchListener", "Stateful", "Retunable")


def test_every_optional_power_is_in_the_table_for_authors() -> None:
    assert contracts.__doc__ is not None
    for power in (*POWERS, "DeclaresTunables"):
        assert power in contracts.__all__
        assert f"| `{power}`" in contracts.__doc__


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_our_policies_pass_the_check_of_other_packages(kind: Kind, name: str) -> None:
    policy = find(kind, name)
    entry = EntryPoint(name, f"{policy.__module__}:{policy.__qualname__}", f"headway.{kind}")
    assert load(kind, name, [entry], ("costs", "seed", "truth", "inner")) is policy


def test_who_has_which_power() -> None:
    """Pinned, so that a renamed method does not silently take a power away."""
    have = {
        power.__name__: {name for kind, name in EVERY if issubclass(find(kind, name), power)}
        for power in (Listener, Retunable, Stateful, DispatchListener)
    }
    assert have["Retunable"] == {"ewsjf", "ewsjf-published"}
    assert have["Stateful"] == {"ewsjf", "ewsjf-published", "running-mean", "histogram"}
    assert have["DispatchListener"] == {"round-robin", "prefix-affinity", "dual-map", "length-split"}
    assert have["Listener"] == {
        *("ewsjf", "ewsjf-published", "ewsjf-authors", "fair-share", "adapter-clusters", "priced-work"),
        "weighted-fair-queue",
        *("boost", "gittins", "prefix-groups"),
        *("overflow-probability", "nested-wait", "backfill", "smallest-remaining-benefit"),
        *("running-mean", "histogram", "past-future", "one-bit", "conformal"),
    }
    assert {name for kind, name in EVERY if tunables(find(kind, name))} == {
        "ewsjf",
        "ewsjf-published",
        "shortest-job-first-aging",
        "priced-work",
        "boost",
        "gittins",
        "deadline-plus-work",
    }
    assert {name for kind, name in EVERY if hasattr(find(kind, name), "redrawn")} == {
        "ewsjf",
        "ewsjf-published",
        "fair-share",
        "weighted-fair-queue",
        "adapter-clusters",
        "prefix-groups",
    }
    assert not isinstance(find("ordering", "fcfs")(), RedrawnOrdering)


class Hears:
    """A listener that keeps what it hears."""

    def __init__(self, log: list[str], name: str) -> None:
        self._log, self._name = log, name

    def observe(self, event: Event) -> None:
        """Keep it."""
        self._log.append(self._name)


def test_each_listener_hears_an_event_once_in_order() -> None:
    log: list[str] = []
    first, second = Hears(log, "first"), Hears(log, "second")
    fanout = EventFanout(first, object(), second, first)
    fanout.observe(Arrived(Request(0, 0.0, 1), 0.0))
    assert log == ["first", "second"]
    assert first in fanout
    assert object() not in fanout
    assert Hears(log, "third") not in fanout


def test_an_estimate_without_powers_is_asked_by_its_quantiles() -> None:
    plain, point = EmpiricalEstimate([1, 3]), PointEstimate(3, "test")
    assert remaining_survival(plain, 2, 0) == pytest.approx(0.5, abs=2**-11)
    assert remaining_survivals(plain, (0, 2, 3), 0) == pytest.approx([1.0, 0.5, 0.0], abs=2**-11)
    assert remaining_survival(point, 2, 0) == 1.0
    assert remaining_survivals(GeometricEstimate(2.0, None, "test"), (1, 2), 0) == [0.5, 0.25]
    assert not law_moves(plain)
