"""How much of a prompt a replica holds in its cache: by its KV events where it has them, else by its own answers."""

from __future__ import annotations

from collections.abc import Sequence

from headway.gateway.replicas.confirmed_prefixes import ConfirmedPrefixes
from headway.gateway.replicas.kv_block_index import KvBlockIndex
from headway.gateway.token_blocks import PromptPrefixes


def known_tokens(
    index: KvBlockIndex | None, confirmed: ConfirmedPrefixes, prefix: Sequence[int], prompt_tokens: int
) -> int | None:
    """Tokens at the start of a prompt that are cached, fewer than all; None where the replica never told.

    Args:
        index: of its blocks; None where its events are not read.
        confirmed: by its answers.
        prefix: hashes of the prompt's prefixes, the shortest first, perhaps with the keys of its blocks.
        prompt_tokens: of the prompt.
    """
    if index is None or index.has_gap or not (index.is_whole or len(index)):
        return confirmed.tokens(prefix, prompt_tokens)
    keys = prefix.keys.get(index.block_tokens) if isinstance(prefix, PromptPrefixes) else None
    if keys is not None:
        held = index.tokens_of_keys(keys)
        return held if index.is_whole else max(held, confirmed.tokens(prefix, prompt_tokens) or 0)
    if index.is_whole and not len(index):
        return 0
    for number in range(len(prefix), 0, -1):
        tokens = index.tokens_of_prefix(prefix[number - 1])
        if tokens is None:
            tokens = confirmed.tokens(prefix[number - 1 : number], prompt_tokens)
        if tokens:
            return max(0, min(tokens, prompt_tokens - 1))
    return 0 if index.is_whole else confirmed.tokens((), prompt_tokens)
