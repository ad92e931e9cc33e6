"""What a whole answer teaches of its replica: its costs, and what its prefix cache holds."""

from __future__ import annotations

from headway.gateway.openai.prompt_prefixes import prefix_bounds
from headway.gateway.queueing.request_state import GatewayRequest
from headway.gateway.replicas.kv_block_index import Answered
from headway.gateway.replicas.learned_costs import AnswerTimes
from headway.gateway.replicas.upstream_replica import UpstreamReplica

SESSION_HEADER = b"x-session-id"
"""vLLM writes its value into the KV events of the request."""


def learn_from_answer(request: GatewayRequest, replica: UpstreamReplica, now: float) -> None:
    """Take in an answer that came whole, with status 200. Its request is still booked at the replica."""
    queued, relayed, arrived = request.queued, request.relayed, request.arrived
    ledger, usage, prompt = replica.ledger, relayed.usage, arrived.prompt
    began = queued.dispatched_at
    assert began is not None, "only a dispatched request is answered"
    tokens = queued.prefill_tokens_there
    if usage is not None and usage.prompt_tokens:
        # Its own part is known exactly by now; of the prompts before it what was believed when it was sent.
        own = max(1, usage.prompt_tokens - usage.cached_tokens)
        tokens = max(own, tokens + own - max(0, queued.prompt_tokens - queued.cached_prompt_tokens))
        if prompt.hashes:
            # A prefix's tokens are taken in proportion to its bytes.
            each = [usage.prompt_tokens * bound // prompt.bytes for bound in prefix_bounds(prompt.bytes)]
            ledger.confirmed.answered(prompt.hashes, each, usage.cached_tokens, queued.confirmed_tokens, now)
            is_ours = arrived.http.header(SESSION_HEADER) is None  # of a client's own, other requests tell as well
            if ledger.kv_blocks is not None and is_ours and not getattr(prompt.hashes, "keys", None):
                session = replica.session_id(arrived.number)
                ledger.kv_blocks.answered(session, Answered(prompt.hashes, each, usage.prompt_tokens))
    prefill, first = None, relayed.first_byte_at
    if arrived.streams and first is not None:
        prefill = first - queued.prefill_since
        began = first  # of its output
    times = AnswerTimes(tokens, prefill, queued.produced_tokens, now - began)
    replica.learned_costs.answered(times, ledger.costs, now)
