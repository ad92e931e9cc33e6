"""Rows that a study keeps from one run to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def kept_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON Lines, in its order; none where it is absent."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
