"""Every engine of these tests moves requests only between places that `MOVES` knows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def only_known_moves(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [
        record.getMessage() for record in caplog.get_records("call") if "please report" in record.getMessage()
    ] == []
