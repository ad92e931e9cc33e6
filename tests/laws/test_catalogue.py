"""Every policy of the catalogue under every law of its contract. Nothing is listed here: both are walked."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import pytest

from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestId
from headway.policies import catalog
from headway.policies.contracts import LanedOrdering
from headway.policies.options import constructor_keywords
from headway.testing import laws

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.02)
LAWS = {
    "admission": laws.ADMISSION,
    "preemption": laws.PREEMPTION,
    "prediction": laws.PREDICTION,
    "routing": laws.ROUTING,
    "rescheduling": laws.RESCHEDULING,
}


def true_length(request_id: RequestId) -> int:
    """A made-up true length, 1 to 256."""
    return 1 + blake2b(repr(request_id).encode(), digest_size=1).digest()[0]


def maker(kind: catalog.Kind, name: str, options: dict[str, object] | None = None) -> Callable[[], Any]:
    return lambda: catalog.build(kind, name, options, costs=COSTS, seed=0, truth=true_length)


def paths() -> list[tuple[catalog.Kind, str]]:
    """All policies, and each ordering inside each that takes another."""
    every: list[tuple[catalog.Kind, str]] = [(kind, name) for kind in catalog.ALL_KINDS for name in catalog.names(kind)]
    inner = [name for name in catalog.names("ordering") if not isinstance(maker("ordering", name)(), LanedOrdering)]
    for name, policy in catalog.ORDERING.items():
        if "inner" in constructor_keywords(policy):
            every += [("ordering", f"{name}/{other}") for other in inner]
    return every


def laws_of(kind: catalog.Kind, name: str) -> tuple[Callable[[Callable[[], Any]], None], ...]:
    if kind != "ordering":
        return LAWS[kind]
    return laws.LANED if isinstance(maker(kind, name)(), LanedOrdering) else laws.RANKED


CASES = [(kind, name, law) for kind, name in paths() for law in laws_of(kind, name)]


@pytest.mark.parametrize(("kind", "name", "law"), CASES, ids=[f"{name}-{law.__name__}" for _, name, law in CASES])
def test_law(kind: catalog.Kind, name: str, law: Callable[[Callable[[], Any]], None]) -> None:
    law(maker(kind, name))


@pytest.mark.parametrize("options", [{"reserve": 0.3}, {"quantile": 0.9}, {"quantile": 0.2, "reserve": 0.1}])
@pytest.mark.parametrize("law", laws.ADMISSION)
def test_peak_check_with_options(law: Callable[[Callable[[], Any]], None], options: dict[str, object]) -> None:
    law(maker("admission", "peak-check", options))


@pytest.mark.parametrize("law", laws.ADMISSION)
def test_reserve_max_with_a_small_default(law: Callable[[Callable[[], Any]], None]) -> None:
    law(maker("admission", "reserve-max", {"default_tokens": 3}))
