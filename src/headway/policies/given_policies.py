"""Policies that a program gives as a class or an instance, instead of a name of the catalogue."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from headway.policies.options import constructor_keywords
from headway.policies.outside_policies import check, refused_construction


def build_given(kind: str, name: str, policy: object, injected: Mapping[str, object]) -> Any:
    """A fresh policy: a class is constructed, an instance copied as it was given.

    Args:
        kind: as in the catalogue.
        name: what sentences call it.
        policy: the class or the instance.
        injected: constructor keywords that Headway gives where the class has them.

    Raises:
        ValueError: it does not keep the contract of its kind, or its constructor fails; one sentence.
    """
    who = f"the {kind} policy {name!r}"
    if not isinstance(policy, type):
        check(kind, who, type(policy), None)
        return deepcopy(policy)
    check(kind, who, policy, injected)
    keywords = constructor_keywords(policy)
    try:
        return policy(**{keyword: value for keyword, value in injected.items() if keyword in keywords})
    except (Exception, SystemExit) as error:
        raise refused_construction(kind, name, policy, error) from error
