"""A request as the gateway's scheduler keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.domain.request import Request

if TYPE_CHECKING:
    from headway.gateway.exchange import Exchange


class QueuedRequest(Request):
    """A request as the gateway's scheduler keeps it, with what only the gateway knows of it."""

    __slots__ = ("body_bytes", "exchange", "hinted_output_tokens", "prefix", "work")

    exchange: Exchange
    prefix: list[int]
    hinted_output_tokens: int | None
    body_bytes: int
    work: float
