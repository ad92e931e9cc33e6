"""The fixture that runs a test with a whole gateway on real sockets."""

from __future__ import annotations

import pytest

from tests.support.gateway_setup import RunGateway
from tests.support.gateway_setup import run_gateway as run


@pytest.fixture
def run_gateway() -> RunGateway:
    """`run_gateway(scenario, replicas=2, …)` runs the coroutine `scenario(setup)` and checks the law afterwards."""
    return run
