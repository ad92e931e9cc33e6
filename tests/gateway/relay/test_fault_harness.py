"""Every request exactly once, whatever replicas and clients do: each fault alone, then all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.support.fault_harness import Book, Setup, gateway_under_test
from tests.support.replica_faults import FAULTS

EXECUTED = "a kept connection that closes without an answer counts as stale: executed more than twice"
ODD = "a body that is no UTF-8 raises past its own exchange"
AWAITED = {
    **dict.fromkeys(["resets", "closes", "closes after 0.2 s", "speaks no HTTP", "switches protocols"], EXECUTED),
    **dict.fromkeys(["status 000", "two lengths", "a length of 400 digits", "a length and chunks"], EXECUTED),
    **dict.fromkeys(
        ["a chunk beyond all sizes", "an interim answer with a body", "interim answers without end"], EXECUTED
    ),
    **dict.fromkeys(["head without end", "answers 204", "answers 304"], EXECUTED),
}
"""Faults that the gateway does not stand yet, and why; an entry goes with its cause."""


def awaited(reason: str | None) -> list[pytest.MarkDecorator]:
    return [] if reason is None else [pytest.mark.xfail(strict=False, reason=reason)]


CASES = [pytest.param(name, id=name.replace(" ", "-"), marks=awaited(AWAITED.get(name))) for name in FAULTS]


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


def check(setup: Setup, book: Book) -> None:
    assert book.faults() == []
    assert setup.errors_logged() == []


@pytest.mark.parametrize("fault", CASES)
def test_one_fault(runner: asyncio.Runner, setup: Setup, fault: str) -> None:
    share = 1.0 if FAULTS[fault].is_legal else 0.4
    book = runner.run(setup.day(fault).run([fault], share=share, requests=30, clients=10))
    check(setup, book)
    assert any(fault in met for met in book.executed.values())


@pytest.mark.xfail(strict=False, reason=EXECUTED)
def test_all_faults_at_once(runner: asyncio.Runner, setup: Setup) -> None:
    book = runner.run(setup.day("all").run(list(FAULTS), share=0.4, requests=400, clients=24, leaves=0.05))
    check(setup, book)


@pytest.mark.xfail(strict=False, reason=ODD)
def test_clients_that_send_odd_bodies_and_leave(runner: asyncio.Runner, setup: Setup) -> None:
    book = runner.run(setup.day("odd").run([], share=0.0, requests=200, odd=0.3, leaves=0.1))
    check(setup, book)
