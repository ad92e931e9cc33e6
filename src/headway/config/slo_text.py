"""SLOs as a user writes them: `ttft=2s,tpot=60ms,e2e=30s`, any of the three in any order."""

from __future__ import annotations

import math
import re

NAMES = ("ttft", "tpot", "e2e")
_EXAMPLE = "write it like ttft=2s,tpot=60ms"


def read_slo(text: str) -> dict[str, float]:
    """Seconds by name, those that are given.

    Raises:
        ValueError: unknown or repeated name, no unit, or a value that is not a positive number; one sentence.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip().lower() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"slo: {part.strip()!r} has no '='; {_EXAMPLE}")
        if name not in NAMES:
            raise ValueError(f"slo: {name!r} is none of {', '.join(NAMES)}; {_EXAMPLE}")
        if name in bounds:
            raise ValueError(f"slo: {name} is given twice; keep one")
        bounds[name] = _seconds(name, value)
    return bounds


def _seconds(name: str, value: str) -> float:
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s)", value)
    if match is None:
        raise ValueError(f"slo: {name}={value} is not a number with the unit s or ms; {_EXAMPLE}")
    number, unit = float(match[1]), match[2]
    if not 0 < number < math.inf:
        raise ValueError(f"slo: {name} must be more than 0, got {value}; leave {name} out to have no bound")
    return number / 1000 if unit == "ms" else number
