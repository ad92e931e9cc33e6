"""A request as the gateway's scheduler keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headway.domain.request import Request

if TYPE_CHECKING:
    from headway.gateway.openai.prompt_count import Counted
    from headway.gateway.relay.exchange import Exchange


class QueuedRequest(Request):
    """A request as the gateway's scheduler keeps it, with what only the gateway knows of it.

    Attributes:
        counted: what was counted of its prompt; None where `prompt_tokens` is an estimate.
        payer: whose bounds it counts against: its key's tenant, else the fairness id it named. Unlike `tenant` a holder
            of a key cannot change it by naming ever new fairness ids.
        rank: which dispatch of its queue it was, counted from 1; 0 while it waits.
    """

    __slots__ = ("body_bytes", "counted", "exchange", "hinted_output_tokens", "payer", "prefix", "rank", "work")

    exchange: Exchange
    prefix: list[int]
    hinted_output_tokens: int | None
    body_bytes: int
    counted: Counted | None
    payer: str
    rank: int
    work: float
