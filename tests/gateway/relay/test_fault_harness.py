"""Every request exactly once, whatever replicas and clients do: each fault alone, then all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.fault_harness import (
    ALL_FAULTS,
    BESIDE_DAYS,
    FLAPPING,
    FLAPS,
    KINDS,
    MANY_CLIENTS,
    ODD_CLIENTS,
    Book,
    Plan,
    Setup,
    gateway_under_test,
    one_fault,
)
from tests.support.replica_faults import FAULTS


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def setup(runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    context = gateway_under_test(tmp_path_factory.mktemp("faults"))
    setup = runner.run(context.__aenter__())
    yield setup
    runner.run(context.__aexit__(None, None, None))


def check(runner: asyncio.Runner, setup: Setup, plan: Plan) -> Book:
    book = runner.run(setup.day(plan))
    errors = setup.errors_logged()
    assert book.broken_laws() == []
    assert errors == []
    return book


@pytest.mark.parametrize("fault", [pytest.param(name, id=name.replace(" ", "-")) for name in FAULTS])
def test_one_fault(runner: asyncio.Runner, setup: Setup, fault: str) -> None:
    book = check(runner, setup, one_fault(fault))
    assert any(fault in met for met in book.executed.values())


@pytest.mark.parametrize("plan", BESIDE_DAYS, ids=[",".join(plan.beside).replace(" ", "-") for plan in BESIDE_DAYS])
def test_misbehaviour_beside_the_api_is_no_fault(runner: asyncio.Runner, setup: Setup, plan: Plan) -> None:
    book = check(runner, setup, plan)
    assert book.endings == {"whole": book.sent}


def test_all_faults_at_once(runner: asyncio.Runner, setup: Setup) -> None:
    check(runner, setup, ALL_FAULTS)


def test_clients_that_send_odd_bodies_and_leave(runner: asyncio.Runner, setup: Setup) -> None:
    check(runner, setup, ODD_CLIENTS)


def test_clients_of_many_kinds(runner: asyncio.Runner, setup: Setup) -> None:
    book = check(runner, setup, MANY_CLIENTS)
    assert set(book.kinds) == set(KINDS)


def test_replicas_that_come_and_go(runner: asyncio.Runner, setup: Setup) -> None:
    book = check(runner, setup, FLAPPING)
    assert any(FLAPS in met for met in book.executed.values())
