"""Bundles: four names of policies, made into one fresh `Policies`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from headway.config.nearest_name import nearest
from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestId
from headway.policies.catalog import KINDS, Kind, build, canonical
from headway.policies.given_policies import build_given
from headway.scheduling.scheduler import OfflinePolicies, Policies


class NamedPolicies(Protocol):
    """Policies by name with their options, as configurations keep them."""

    @property
    def ordering(self) -> str:
        """A name of the catalogue."""

    @property
    def admission(self) -> str:
        """Likewise."""

    @property
    def preemption(self) -> str:
        """Likewise."""

    @property
    def prediction(self) -> str:
        """Likewise."""

    @property
    def options(self) -> Mapping[str, Mapping[str, object]] | None:
        """Kind → option → value."""


def name_and_options(kind: Kind, value: object, where: str) -> tuple[str, Mapping[str, Any]]:
    """A policy as every configuration writes it: its name, or a table of `name` and `options`. Aliases are replaced.

    Raises:
        ValueError: it is neither; one sentence that begins with `where`.
    """
    if isinstance(value, str):
        return canonical(kind, value), {}
    if isinstance(value, Mapping) and isinstance(value.get("name"), str) and set(value) <= {"name", "options"}:
        options = value.get("options", {})
        if isinstance(options, Mapping):
            return canonical(kind, value["name"]), options
    raise ValueError(f'{where} must be a name, or {{name = "…", options = {{…}}}}, got {value!r}')


def bundle(
    *,
    ordering: str = "fcfs",
    admission: str = "greedy",
    preemption: str = "latest-admitted",
    prediction: str = "running-mean",
    offline_ordering: str = "fcfs",
    options: Mapping[str, Mapping[str, object]] | None = None,
    given: Mapping[Kind, object] = MappingProxyType({}),
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> Policies:
    """Fresh policies by name. `options`: kind → option → value, as `{"ordering": {"lane_width": 1.1}}`.

    `costs` are the replica's seconds per token; `seed` feeds the policies that draw lots; `truth` tells a request's
    true output tokens and is the simulator's alone to give. `offline_ordering` is the order of offline requests.
    `given`: kind → class or instance in place of the name.

    Raises:
        ValueError: an unknown name or a bad option; one sentence for the user.
    """
    options = options or {}
    for kind in options:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of policy {kind!r}{nearest(kind, KINDS)}")

    injected: dict[str, object] = {"costs": costs, "seed": seed, **({} if truth is None else {"truth": truth})}

    def built(kind: Kind, name: str) -> Any:
        if kind in given:
            return build_given(kind, name, given[kind], injected)
        return build(kind, name, options.get(kind), costs=costs, seed=seed, truth=truth)

    return Policies(
        ordering=built("ordering", ordering),
        admission=built("admission", admission),
        preemption=built("preemption", preemption),
        prediction=built("prediction", prediction),
        offline=OfflinePolicies(build("ordering", offline_ordering, None, costs=costs, seed=seed, truth=truth)),
    )


def bundle_of(
    named: NamedPolicies,
    *,
    given: Mapping[Kind, object] = MappingProxyType({}),
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
    offline_ordering: str = "fcfs",
) -> Policies:
    """Fresh policies of a configuration; see `bundle`, whose ValueError it raises."""
    return bundle(
        ordering=named.ordering,
        admission=named.admission,
        preemption=named.preemption,
        prediction=named.prediction,
        offline_ordering=offline_ordering,
        options=named.options,
        given=given,
        costs=costs,
        seed=seed,
        truth=truth,
    )
