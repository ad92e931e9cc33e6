"""A request inside the reference engine: what policies see, and the marks that the engine writes on it."""

from __future__ import annotations

import math

from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import Request
from headway.simulator.outcome import NEVER
from headway.simulator.reference_blocks import Block


class ReferenceRequest(Request):
    """A request inside the reference engine. Its true output length is not here: only the engine knows it.

    Attributes:
        row: its number, also its id; in a simulated day its row in the trace.
        output_limit: output tokens after which the engine ends it by counting: the client's bound, or infinity.
        computed_tokens: KV tokens computed, those of steps in flight included.
        placeholders: tokens sampled by steps in flight, not known yet (asynchronous scheduling only).
        is_prefilling: admitted, and nothing was sampled for it since.
        is_running: has a seat in the batch.
        has_ended: its last token came out, or it was cancelled.
        carried_tokens: KV tokens that it brings from another replica; 0 once it was admitted.
        blocks, named_blocks: see `reference_blocks.Holder`.
        admitted_ps: time of its first admission; NEVER before that.
        cached_tokens: prefix-cache hits at its first admission.
        first_token_ps: time of its first token; NEVER before that.
        last_token_ps: time of its latest token; NEVER before the first.
        gap_ps: between its latest two tokens; NEVER before the second.
        ended_ps: time of its last token; NEVER before that.
        preemptions: how often it lost its memory.
        high_water_tokens: most KV tokens it ever had when it lost its memory; computing below that is recomputing.
        lost_tokens: prompt tokens that replicas that failed had computed of it; likewise.
        recomputed_tokens: KV tokens computed once more after preemptions and failures, prefix-cache hits not counted.
    """

    __slots__ = (
        "admitted_ps",
        "blocks",
        "cached_tokens",
        "carried_tokens",
        "computed_tokens",
        "ended_ps",
        "first_token_ps",
        "gap_ps",
        "has_ended",
        "high_water_tokens",
        "is_prefilling",
        "is_running",
        "last_token_ps",
        "lost_tokens",
        "named_blocks",
        "output_limit",
        "placeholders",
        "preemptions",
        "recomputed_tokens",
        "row",
    )

    def __init__(
        self,
        row: int,
        arrived_at: float,
        prompt_tokens: int,
        *,
        tenant: str = "",
        session: str | None = None,
        max_output_tokens: int | None = None,
        deadline: float | None = None,
        priority: int = 0,
        adapter: str | None = None,
        is_offline: bool = False,
        later_deadlines: LaterDeadlines | None = None,
    ) -> None:
        super().__init__(
            row,
            arrived_at,
            prompt_tokens,
            tenant=tenant,
            session=session,
            max_output_tokens=max_output_tokens,
            deadline=deadline,
            priority=priority,
            adapter=adapter,
            is_offline=is_offline,
            later_deadlines=later_deadlines,
        )
        self.row = row
        self.output_limit = math.inf if max_output_tokens is None else max_output_tokens
        self.computed_tokens = 0
        self.placeholders = 0
        self.is_prefilling = False
        self.is_running = False
        self.has_ended = False
        self.carried_tokens = 0
        self.blocks: list[Block] = []
        self.named_blocks = 0
        self.admitted_ps = NEVER
        self.cached_tokens = 0
        self.first_token_ps = NEVER
        self.last_token_ps = NEVER
        self.gap_ps = NEVER
        self.ended_ps = NEVER
        self.preemptions = 0
        self.high_water_tokens = 0
        self.lost_tokens = 0
        self.recomputed_tokens = 0

    @property
    def total_tokens(self) -> int:
        """Prompt, and outputs so far."""
        return self.prompt_tokens + self.produced_tokens

    @property
    def lacking_tokens(self) -> int:
        """Tokens known or on their way whose KV is not computed yet."""
        return self.total_tokens + self.placeholders - self.computed_tokens
