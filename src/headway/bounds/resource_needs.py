"""Least needs of each request, in tokens and KV blocks, however lucky the prefix cache.

Two views of the same prompt, both optimistic:

    share    what the request pays for when all requests together pay for the machine. A prefix block that c chains
             ask for is computed at least once and held once: each of them pays for 1/c of it.
    own      what it computes itself even if every block that another request could have computed is in the cache.

Blocks are credited by the ids of the trace; an id counts as shared even where its last, partial block is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from headway.bounds.chains import Chains, Floats, Ints
from headway.simulator.rules import EngineRules
from headway.simulator.trace import Trace


@dataclass(frozen=True, slots=True)
class Needs:
    """Columns by request, in the order of `Chains.rows`.

    Attributes:
        prompts: prompt tokens.
        outputs: output tokens, each of which takes a step of its own.
        contexts: KV tokens that its decode steps read, over all of them.
        share_tokens: prompt tokens to compute, its share.
        share_pairs: the same as Σ (2·position + 1) over these tokens.
        share_block_steps: KV blocks held, over the steps that give it a token, its share.
        own_tokens: prompt tokens that no other request can compute for it, ≥ 1.
        own_pairs: the same as Σ (2·position + 1).
        released_ps: by chain, arrival of the first chain that may begin computing its prompt.
    """

    prompts: Floats
    outputs: Floats
    contexts: Floats
    share_tokens: Floats
    share_pairs: Floats
    share_block_steps: Floats
    own_tokens: Floats
    own_pairs: Floats
    released_ps: Ints


def needs(trace: Trace, rules: EngineRules, served: Chains) -> Needs:
    """Least needs of the requests of these chains.

    Raises:
        ValueError: blocks do not divide the trace's prefix blocks (with prefix caching).
    """
    prompts = trace.prompt_tokens[served.rows].astype(np.float64)
    outputs = trace.output_tokens[served.rows].astype(np.float64)
    further = outputs - 1
    # With fusion others keep, at the best, what a request shares, in each step that gives it a token.
    fused = outputs * np.floor(rules.fused_share * (prompts // rules.block_tokens))
    block_steps = _ceilings(prompts + further, rules.block_tokens) - _ceilings(prompts - 1, rules.block_tokens)
    needed = Needs(
        prompts=prompts,
        outputs=outputs,
        contexts=further * prompts + further * (further - 1) / 2,  # p, p + 1, … p + o - 2
        share_tokens=prompts.copy(),
        share_pairs=prompts**2,
        share_block_steps=block_steps - fused,
        own_tokens=prompts.copy(),
        own_pairs=prompts**2,
        released_ps=served.arrived_ps.copy(),
    )
    if rules.prefix_caching and trace.prefix_ids is not None:
        _credit_shared_prefixes(needed, trace, trace.prefix_ids, rules, served)
    return needed


def _ceilings(most: Floats, block_tokens: int) -> Floats:
    """Σ ceil(x / block_tokens) over x = 1 … most."""
    blocks, rest = np.divmod(most, block_tokens)
    return np.asarray(block_tokens * blocks * (blocks + 1) / 2 + rest * (blocks + 1))


def _credit_shared_prefixes(
    needed: Needs, trace: Trace, prefix_ids: Sequence[Sequence[int]], rules: EngineRules, served: Chains
) -> None:
    """Take off the prompts what other requests may have computed, and spread what is shared."""
    if trace.prefix_block_tokens % rules.block_tokens:
        raise ValueError(
            f"prefix caching needs block_tokens ({rules.block_tokens}) to divide the trace's prefix blocks "
            f"({trace.prefix_block_tokens} tokens)"
        )
    sharers_of, earliest = _sharing(prefix_ids, served)
    block, per_id = rules.block_tokens, trace.prefix_block_tokens // rules.block_tokens
    for chain, places in _by_chain(served):
        seen: set[int] = set()
        for place in places:
            row = int(served.rows[place])
            prompt, ids = int(trace.prompt_tokens[row]), prefix_ids[row]
            full = min(prompt, len(ids) * trace.prefix_block_tokens) // block
            hittable = min(full, (prompt - 1) // block)  # the last token is always computed
            for number, name in enumerate(ids):
                first, last = number * per_id, min((number + 1) * per_id, full)
                if last <= first:
                    break
                sharers = sharers_of[name]
                if sharers > 1 or name in seen:
                    unshared = 0.0 if name in seen else 1 / sharers
                    tokens, pairs = (last - first) * block, (last**2 - first**2) * block**2
                    needed.share_tokens[place] -= tokens * (1 - unshared)
                    needed.share_pairs[place] -= pairs * (1 - unshared)
                    needed.share_block_steps[place] -= needed.outputs[place] * (last - first) * (1 - 1 / sharers)
                    hits = max(0, min(last, hittable) - first)
                    needed.own_tokens[place] -= hits * block
                    needed.own_pairs[place] -= ((first + hits) ** 2 - first**2) * block**2
                    needed.released_ps[chain] = min(needed.released_ps[chain], earliest[name])
            seen.update(ids)


def _sharing(prefix_ids: Sequence[Sequence[int]], served: Chains) -> tuple[dict[int, int], dict[int, int]]:
    """By id: how many chains ask for it, and arrival of the first of them, picoseconds."""
    sharers_of: dict[int, int] = {}
    earliest: dict[int, int] = {}
    for chain, places in _by_chain(served):
        arrived = int(served.arrived_ps[chain])
        for name in {name for place in places for name in prefix_ids[int(served.rows[place])]}:
            sharers_of[name] = sharers_of.get(name, 0) + 1
            earliest[name] = min(earliest.get(name, arrived), arrived)
    return sharers_of, earliest


def _by_chain(served: Chains) -> Iterator[tuple[int, range]]:
    """(number of the chain, places of its requests in `rows`)."""
    ends = [*served.starts[1:].tolist(), len(served.rows)] if len(served) else []
    for chain, (first, last) in enumerate(zip(served.starts.tolist(), ends, strict=True)):
        yield chain, range(first, last)
