"""Addresses of servers as users type them."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit


def http_address(url: str) -> SplitResult | None:
    """The parts of an http or https address whose host and port can be; None if it is none."""
    try:
        parts = urlsplit(url)
        possible = parts.port != 0
    except ValueError:  # brackets without an end, a port that is no number or past 65,535
        return None
    known = parts.scheme in ("http", "https") and bool(parts.hostname)
    return parts if known and possible and url.isprintable() and " " not in url else None
