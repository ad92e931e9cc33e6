"""What one command line came to."""

from __future__ import annotations

from typing import NamedTuple


class Said(NamedTuple):
    """What one command line came to."""

    status: int
    out: str
    err: str
