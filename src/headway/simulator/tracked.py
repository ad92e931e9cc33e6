"""A request inside the fast engine: what policies see, and the engine's own marks."""

from __future__ import annotations

from headway.domain.later_deadlines import LaterDeadlines
from headway.domain.request import NEVER_LOOKED_UP, Request

WAITING, PREFILLING, DECODING, LEAVING = range(4)


class TrackedRequest(Request):
    """A request with the fast engine's marks; the true output length is not among them.

    While it decodes, nothing here is touched from step to step: its state at step s follows from the step at which it
    joined (see `decoding.DecodeSet`).

    Attributes:
        row: its row in the trace.
        ends_by_limit: its last token is foreseen by counting, not learnt from a stop token.
        target_tokens: prompt, and outputs to recompute, that the current prefill has to reach.
        computed_tokens: KV tokens computed; up to date while prefilling and at preemption.
        carried_tokens: KV tokens that it brings from another replica; 0 once it was admitted.
        high_water_tokens: most KV tokens it ever had computed here.
        recomputed_below: below so many KV tokens, computing is recomputing: `high_water_tokens`, or what a replica that
            failed had computed of its prompt.
        blocks: KV blocks held; up to date while prefilling.
        joined_step: step at whose end the token before its first decode step came out; decoding since the step after.
        finish_step: step whose end gives its last token.
        base_produced: tokens it had produced when it joined (that of `joined_step` included).
        last_token_step: step that gave the latest of these.
        generation: counts its joins, so that an old heap entry is known to be stale.
        last_token_ps: end of the step that gave its latest token before a pause.
        seat: number of its latest admission, counted over the day.
        phase: WAITING, PREFILLING, DECODING, or LEAVING (its last token is on its way).
    """

    __slots__ = (
        "base_produced",
        "blocks",
        "carried_tokens",
        "computed_tokens",
        "ends_by_limit",
        "finish_step",
        "generation",
        "high_water_tokens",
        "joined_step",
        "last_token_ps",
        "last_token_step",
        "phase",
        "recomputed_below",
        "row",
        "seat",
        "target_tokens",
    )

    def __init__(
        self,
        row: int,
        arrived_at: float,
        prompt_tokens: int,
        tenant: str,
        session: str | None,
        max_output_tokens: int | None,
        deadline: float | None,
        priority: int,
        ends_by_limit: bool,
        adapter: str | None = None,
        is_offline: bool = False,
        later_deadlines: LaterDeadlines | None = None,
    ) -> None:
        # Written out rather than passed up: one of these is made for every request of a million.
        self.id = row
        self.row = row
        self.arrived_at = arrived_at
        self.prompt_tokens = prompt_tokens
        self.tenant = tenant
        self.session = session
        self.adapter = adapter
        self.is_offline = is_offline
        self.max_output_tokens = max_output_tokens
        self.deadline = deadline
        self.later_deadlines = later_deadlines
        self.priority = priority
        self.cached_prompt_tokens = 0
        self.prefix_hashes = ()
        self.looked_up_at = NEVER_LOOKED_UP
        self.produced_tokens = 0
        self.sequences = 1
        self.replica_id = None
        self.estimate = None
        self.ends_by_limit = ends_by_limit
        self.target_tokens = prompt_tokens
        self.computed_tokens = 0
        self.carried_tokens = 0
        self.high_water_tokens = 0
        self.recomputed_below = 0
        self.blocks = 0
        self.joined_step = 0
        self.finish_step = 0
        self.base_produced = 0
        self.last_token_step = 0
        self.generation = 0
        self.last_token_ps = 0
        self.phase = WAITING
        self.seat = 0
