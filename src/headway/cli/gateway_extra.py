"""Checks that the packages of the gateway and of the endpoint picker, two extras, are installed."""

from __future__ import annotations

from importlib.util import find_spec

from headway.bench.user_mistake import UserMistake

_PACKAGES = ("uvloop", "httptools", "msgspec", "multipart", "prometheus_client")
_PICKER_PACKAGES = (*_PACKAGES, "hpack", "google.protobuf")


def require_gateway() -> None:
    """Raise UserMistake if a package is missing."""
    _require(_PACKAGES, "gateway")


def require_picker() -> None:
    """Raise UserMistake if a package of the endpoint picker is missing."""
    _require(_PICKER_PACKAGES, "epp")


def _require(packages: tuple[str, ...], extra: str) -> None:
    missing = [name for name in packages if not _is_installed(name)]
    if missing:
        raise UserMistake(f"this needs {', '.join(missing)}: pip install 'headway[{extra}]'")


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False
