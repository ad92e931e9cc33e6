"""Sums over waiting requests, kept as they come and go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class WaitingSums:
    """Sums over waiting requests. `tokens` are those of prompts, `bytes` those of bodies."""

    requests: int = 0
    tokens: int = 0
    bytes: int = 0

    def add(self, prompt_tokens: int, body_bytes: int) -> None:
        """A request joined."""
        self.requests += 1
        self.tokens += prompt_tokens
        self.bytes += body_bytes

    def take(self, prompt_tokens: int, body_bytes: int) -> None:
        """A request left."""
        self.requests -= 1
        self.tokens -= prompt_tokens
        self.bytes -= body_bytes
