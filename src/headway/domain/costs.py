"""Service costs: seconds per prompt token and per output token on one replica."""

from __future__ import annotations

from typing import NamedTuple


class ServiceCosts(NamedTuple):
    """Seconds of service per token.

    Attributes:
        prefill_seconds_per_token: of one prompt token that is not cached, in a step full of them.
        decode_seconds_per_token: what a request waits for each output token at a typical batch (its TPOT, not its
            share of the step).
    """

    prefill_seconds_per_token: float
    decode_seconds_per_token: float
