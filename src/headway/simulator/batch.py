"""Running requests of one replica and the memory they hold; also what policies see of them (`BatchView`)."""

from __future__ import annotations

from typing import TypeAlias

from headway.simulator.blocks import BlockMemory
from headway.simulator.decoding import DecodeSet, computed_before
from headway.simulator.resident_adapters import ResidentAdapters
from headway.simulator.rules import EngineRules
from headway.simulator.tracked import DECODING, LEAVING, PREFILLING, TrackedRequest

NO_LIMIT = 1 << 62

Chunks: TypeAlias = list[tuple[TrackedRequest, int, int]]
"""Prompts computed in a step: (request, tokens now, tokens computed or cached before), in order of admission."""


class Batch:
    """The running requests of one replica.

    Attributes:
        adapters: LoRA adapters in memory; None where they take nothing.
        aside: requests that were displaced for this step, and wait outside the queue until it is composed.
        offline_tokens: most tokens of one offline prompt in a step.
        token_budget: most tokens of a step.
        threshold: most tokens of one prompt in a step, 0 for no limit; see `EngineRules.long_prefill_token_threshold`.
        members: all of them, in order of admission; those LEAVING hold seat and memory until their last token.
        prefilling: requests whose prompt is not complete, in order of admission.
        decoding: requests that get a token in every step.
        stalled: decoding requests that got no token in the last step.
        wasting: how many decode although they have ended, as asynchronous scheduling learns of it one step late.
        done_step: number of the last step that has ended.
        decode_steps: steps that have ended; steps without tokens take a number but do not count.
    """

    __slots__ = (
        "_seats_taken",
        "adapters",
        "aside",
        "decode_steps",
        "decoding",
        "done_step",
        "members",
        "memory",
        "offline_tokens",
        "prefilling",
        "rules",
        "stalled",
        "threshold",
        "token_budget",
        "version",
        "wasting",
    )

    def __init__(self, rules: EngineRules, memory: BlockMemory) -> None:
        self.rules = rules
        self.memory = memory
        self.adapters = None if rules.adapters is None else ResidentAdapters(rules.adapters, memory)
        self.threshold = rules.long_prefill_token_threshold
        self.token_budget = rules.max_num_batched_tokens
        self.aside = 0
        self.offline_tokens = NO_LIMIT
        self.members: dict[TrackedRequest, None] = {}
        self.prefilling: list[TrackedRequest] = []
        self.decoding = DecodeSet(rules.block_tokens)
        self.stalled: list[TrackedRequest] = []
        self.wasting = 0
        self.done_step = 0
        self.decode_steps = 0
        self.version = 0
        self._seats_taken = 0

    # What policies see

    @property
    def size(self) -> int:
        """Requests that run (`BatchView.size`)."""
        return len(self.members)

    def running(self) -> list[TrackedRequest]:
        """The requests that run, `produced_tokens` up to date (`BatchView.running`)."""
        return self.up_to_date(list(self.members))

    def up_to_date(self, requests: list[TrackedRequest]) -> list[TrackedRequest]:
        """The same requests, `produced_tokens` written out."""
        for request in requests:
            request.produced_tokens = self.produced_tokens(request)
        return requests

    def produced_tokens(self, request: TrackedRequest) -> int:
        """Output tokens that have come out by the end of `done_step`."""
        if request.phase <= PREFILLING:
            return request.produced_tokens
        done = self.done_step
        produced = request.base_produced - (done < request.last_token_step)
        if done > request.joined_step:
            produced += min(done, request.finish_step) - request.joined_step
        return produced

    # What a step asks

    def chunk_limit(self, waiting: int) -> int:
        """Most tokens of one prompt in a step; a request that is alone starves no other and has no limit."""
        requests = len(self.members) + waiting + self.aside
        if not self.threshold or requests <= 1:
            return NO_LIMIT
        if self.rules.long_prefill_token_threshold_adaptive:
            return max(self.threshold, self.rules.max_num_batched_tokens // requests)
        return self.threshold

    def shares(self, due_blocks: int, limit: int) -> Chunks | None:
        """The prompts' chunks when every running request gets tokens and blocks; None if one would go short.

        `due_blocks` go to decoding requests, which take a token of the budget each.
        """
        free = self.memory.free - due_blocks
        if free < 0:
            return None
        chunks: Chunks = []
        if not self.prefilling:
            return chunks
        budget = self.token_budget - self.decoding.size
        block_tokens = self.rules.block_tokens
        for request in self.prefilling:
            before = request.computed_tokens
            tokens = min(request.target_tokens - before, limit)
            if request.is_offline:
                tokens = min(tokens, self.offline_tokens)
            if tokens > budget:
                if request is not next(reversed(self.members)):
                    return None
                tokens = budget  # it is the last: no request behind it goes short
            if tokens:
                free -= -(-(before + tokens) // block_tokens) - request.blocks
                chunks.append((request, tokens, before))
                budget -= tokens
        return chunks if free >= 0 else None

    def enter(self, request: TrackedRequest, target_tokens: int, tokens: int, before: int, hit_tokens: int) -> None:
        """Give a request a seat, and the memory of `tokens` behind those `before`: cached, or brought with it."""
        self.memory.admit(request, before + tokens, hit_tokens)
        request.target_tokens = target_tokens
        request.computed_tokens = before
        request.carried_tokens = 0
        request.phase = PREFILLING
        self._seats_taken += 1
        request.seat = self._seats_taken
        self.prefilling.append(request)
        self.members[request] = None
        if self.adapters is not None:
            self.adapters.enter(request)
        self.version += 1

    def start_decoding(self, request: TrackedRequest, step: int, remaining_tokens: int) -> None:
        """Let a request decode: `step` completes its prompt and gives the first of its `remaining_tokens`."""
        self.prefilling.remove(request)
        request.phase = DECODING
        request.base_produced = request.produced_tokens + 1
        request.last_token_step = step
        self.decoding.join(request, step, remaining_tokens)
        self.version += 1

    def take_endings(self, step: int) -> list[TrackedRequest]:
        """Requests whose last token comes with `step`.

        An end by the client's bound is foreseen. With asynchronous scheduling, a request that ends by a stop token is
        in the next step too, because that step is composed before the stop token is known.
        """
        endings = self.decoding.pop_ends(step)
        self.wasting = 0
        for request in endings:
            if request.ends_by_limit or not self.rules.async_scheduling:
                self.decoding.leave(request)
                request.phase = LEAVING
            else:
                self.wasting += 1
        return endings

    def leave(self, request: TrackedRequest) -> None:
        """Take seat and memory of a request whose last token has come out."""
        computed = computed_before(request, request.finish_step + 1)
        held = computed
        if request.phase == DECODING:  # one wasted token
            held = computed + 1
            self.decoding.leave(request)
        self.memory.release(request, computed, -(-held // self.rules.block_tokens), keep=False)
        self.vacated(request)

    def vacated(self, request: TrackedRequest) -> None:
        """Take the seat of a request that has given up its blocks."""
        del self.members[request]
        if self.adapters is not None:
            self.adapters.leave(request)
        self.version += 1
