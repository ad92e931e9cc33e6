"""Checks that the packages of the gateway, an extra, are installed."""

from __future__ import annotations

from importlib.util import find_spec

from headway.bench.user_mistake import UserMistake

_PACKAGES = ("uvloop", "httptools", "msgspec", "prometheus_client")


def require_gateway() -> None:
    """Raise UserMistake if a package is missing."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UserMistake(f"this needs {', '.join(missing)}: pip install 'headway[gateway]'")
