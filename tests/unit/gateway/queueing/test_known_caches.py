"""What KV events say of a waiting prompt stands in for the estimate, at its arrival and at the head of its queue."""

from __future__ import annotations

import msgspec

from headway.gateway.openai.prompt_count import PromptCount, PromptFacts
from headway.gateway.openai.token_ratio import TokenRatio
from headway.gateway.queueing.intake import Intake
from headway.gateway.queueing.known_caches import cached_somewhere
from headway.gateway.queueing.request_state import GatewayRequest, PromptSize
from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.replicas.kv_event_messages import BlockStored
from headway.gateway.replicas.replica_state import Health
from headway.gateway.replicas.upstream_replica import UpstreamReplica
from headway.gateway.settings import HealthSettings, ReplicaSettings
from headway.gateway.token_blocks import PromptPrefixes, keys_in_steps, packed
from tests.support.gateway_requests import gateway_request

SIZE = 4
IDS = list(range(20))


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.msgpack.encode(value))


def replica(name: str, held: int | None, *models: str) -> UpstreamReplica:
    """Up; its events say that it holds the first `held` tokens, None where they are not read."""
    made = UpstreamReplica(ReplicaSettings(url=f"http://{name}"), HealthSettings(), lambda: 0.0)
    made.state.health = Health.UP
    made.state.models = dict.fromkeys(models)
    if held is not None:
        made.ledger.kv_blocks = index = KvBlockIndex(100)
        index.clear(is_whole=True)
        names = list(range(held // SIZE))
        for _ in index.take(BlockStored(raw(names), None, raw(IDS[:held]), SIZE), 5.0):
            pass
    return made


def request() -> GatewayRequest:
    prefixes = PromptPrefixes([1])
    *_, prefixes.keys[SIZE] = keys_in_steps(packed(IDS), SIZE)
    facts = PromptFacts(bytes=2_000, ids=len(IDS), hashes=prefixes)
    return gateway_request(1, {"prompt": IDS}, prompt_tokens=len(IDS), model="m", prompt=facts)


def test_the_most_that_any_replica_holds_which_may_serve_it() -> None:
    queued = request().queued
    fleet = [replica("a", 4, "m"), replica("b", 12, "m"), replica("c", 16, "other"), replica("d", None, "m")]
    assert cached_somewhere(queued, fleet) == 12
    fleet[1].is_drained = True
    assert cached_somewhere(queued, fleet) == 4
    assert cached_somewhere(queued, [replica("a", 0, "m")]) == 0
    assert cached_somewhere(queued, [replica("d", None, "m")]) is None
    assert cached_somewhere(gateway_request(2, {"prompt": "x"}).queued, fleet) is None


def test_what_is_known_is_taken_at_arrival_and_at_the_head() -> None:
    known: int | None = 12
    intake = Intake(PromptCount({}, TokenRatio()), lambda: 0.0, "id", known_cached=lambda queued: known)
    sizes: list[PromptSize | None] = []
    one = request()
    intake._enter(one, sizes.append, None)
    assert sizes.pop() == PromptSize(20, 12, None)
    intake._enter(one, sizes.append, PromptSize(10, 3, None))
    assert sizes.pop() == PromptSize(10, 9, None), "never the whole prompt"
    assert intake.cached_tokens(one.queued) == 12
    known = None
    intake._enter(one, sizes.append, None)
    assert sizes.pop() is None
    assert intake.cached_tokens(one.queued) == 0
