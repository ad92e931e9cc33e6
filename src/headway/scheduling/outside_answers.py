"""Answers of other packages' and programs' policies in a simulation: each is checked, and a failure names its policy.

Headway's own are held to their contracts by tests, and pay for no check.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from headway.policies.catalog import Kind, find
from headway.policies.outside_policies import raised_in
from headway.scheduling.checked_policies import PolicyFault, checked
from headway.scheduling.scheduler import Policies


def outside_checked(
    policies: Policies, named: Mapping[Kind, str], given: Mapping[Kind, object] = MappingProxyType({})
) -> Policies:
    """The same policies, those that are not Headway's checked with every answer.

    Args:
        policies: to be checked.
        named: kind → full name.
        given: kind → class or instance, where a program gave one instead of a name of the catalogue.
    """
    return checked(policies, _outside(named, given))


def blamed(
    named: Mapping[Kind, str], failure: BaseException, given: Mapping[Kind, object] = MappingProxyType({})
) -> str | None:
    """A sentence that names the outside policy that raised `failure` or answered without sense; None if none did."""
    for kind, parts in _outside(named, given).items():
        for name, policy in parts.items():
            sentence = raised_in(kind, name, policy, failure.__cause__ or failure)
            if sentence is not None:
                return sentence
    if isinstance(failure, PolicyFault):
        kinds = {str(kind): name for kind, name in named.items()}
        return f"the {failure.kind} policy {kinds[failure.kind]!r} {failure.sentence}; correct the policy"
    return None


def _outside(named: Mapping[Kind, str], given: Mapping[Kind, object]) -> dict[Kind, dict[str, type[Any]]]:
    """Kind → name → class of the policies that are not Headway's own, with those inside one of Headway's."""
    outside: dict[Kind, dict[str, type[Any]]] = {}
    for kind, path in named.items():
        if kind in given:
            policy = given[kind]
            outside[kind] = {path: policy if isinstance(policy, type) else type(policy)}
            continue
        for name in path.split("/"):
            policy = find(kind, name)
            if not policy.__module__.startswith("headway."):
                outside.setdefault(kind, {})[name] = policy
    return outside
