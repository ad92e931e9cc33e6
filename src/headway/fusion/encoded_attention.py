"""Attention over the encoded form, without decoding it.

Attention is linear in a block's keys and in its values, so the scales go outside. Logits are the query's products with
the representative × the key scale; the output sums the representative's values with weights × the value scale. Where
representatives of keys are turned back to the start of their block, the query is turned back instead, once per block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from headway.fusion.encoding import EncodedComponent, EncodedPart, Encoding, Half
from headway.fusion.kv_blocks import Floats, Integers, as_floats


def attend_encoded(encoding: Encoding, request: int, layer: int, queries: Any) -> Floats:
    """One layer's attention of new tokens over all full blocks of a request.

    Args:
        encoding: the blocks.
        request: whose blocks.
        layer: index of the layer.
        queries: (tokens, query heads, head size), turned by their positions. Query heads are a multiple of KV heads.

    Returns:
        (tokens, query heads, head size), before the output projection.

    Raises:
        ValueError: the queries do not fit, or the request has no full block.
    """
    asked = as_floats("queries", queries)
    fits = asked.ndim == 3 and asked.shape[1] % encoding.heads == 0 and asked.shape[2] == encoding.head_dim
    if not fits:
        raise ValueError(
            f"queries have shape {asked.shape}: (tokens, a multiple of {encoding.heads} query heads, "
            f"{encoding.head_dim}) is needed"
        )
    chosen = np.flatnonzero(encoding.requests == request)
    if not chosen.size or not 0 <= layer < encoding.layers:
        raise ValueError(f"request {request} has no full block in layer {layer}")
    tokens, query_heads, width = asked.shape
    grouped = asked.reshape(tokens, encoding.heads, query_heads // encoding.heads, width)
    shape = (tokens, encoding.heads, query_heads // encoding.heads, len(chosen), encoding.block_tokens)
    logits = np.empty(shape, np.float32)
    for part, one in _components(encoding, layer, Half.KEYS):
        span = slice(one.component.first_head, one.component.end_head)
        logits[:, span] = _logits(encoding, part, one, chosen, grouped[:, span])
    weights = _softmax(logits / np.sqrt(width))
    out = np.empty(grouped.shape, np.float32)
    for part, one in _components(encoding, layer, Half.VALUES):
        span = slice(one.component.first_head, one.component.end_head)
        scaled = weights[:, span] * one.scales[chosen][:, None]
        out[:, span] = np.einsum("thgbs,bshd->thgd", scaled, one.representatives[part.table[chosen]], optimize=True)
    return out.reshape(tokens, query_heads, width)


def _components(encoding: Encoding, layer: int, half: Half) -> list[tuple[EncodedPart, EncodedComponent]]:
    return [
        (part, one)
        for part in encoding.parts
        for one in part.components
        if one.component.layer == layer and one.component.half is half
    ]


def _logits(encoding: Encoding, part: EncodedPart, one: EncodedComponent, chosen: Integers, queries: Floats) -> Floats:
    """(tokens, heads, group, blocks, block tokens): products of queries with keys."""
    kept = one.representatives[part.table[chosen]]
    scales = one.scales[chosen][:, None]
    if encoding.rotary is None:
        products = np.einsum("thgd,bshd->thgbs", queries, kept, optimize=True)
    else:
        starts = encoding.places[chosen] * encoding.block_tokens
        back = encoding.rotary.turned(queries[:, :, :, None], -starts)
        products = np.einsum("thgbd,bshd->thgbs", back, kept, optimize=True)
    return np.asarray(products * scales, np.float32)


def _softmax(logits: Floats) -> Floats:
    """Over the last two axes together."""
    powers = np.exp(logits - logits.max(axis=(-2, -1), keepdims=True))
    return np.asarray(powers / powers.sum(axis=(-2, -1), keepdims=True), np.float32)
