"""Makes request bodies of the lengths in a trace. Prompts are token ids, not text, so every engine counts them alike.

Two prompts share a prefix exactly where the trace says so (`prefix_ids`), and nothing else.
"""

from __future__ import annotations

import json
from hashlib import blake2b

import numpy as np

from headway.simulator.trace import Trace

_RING_TOKENS = 1 << 16
_ID_BYTES = 5  # four digits and a comma
_LOWEST_ID, _HIGHEST_ID = 1_000, 9_999  # ordinary ids in every vocabulary in use


class Prompts:
    """Makes the body of every row of a trace."""

    def __init__(self, trace: Trace, model: str, seed: int, *, simulated: bool) -> None:
        """`simulated`: the endpoint is the embedded engine, which gets the true length beside the bound."""
        self._trace = trace
        self._model = json.dumps(model)
        self._simulated = simulated
        ids = np.random.default_rng([seed, 0x70726F6D]).integers(_LOWEST_ID, _HIGHEST_ID, _RING_TOKENS)
        self._ring = b"".join(b"%d," % token for token in ids.tolist())
        self._seed = seed

    def body(self, row: int) -> bytes:
        """A streamed completion request: JSON, usage asked for."""
        trace = self._trace
        output = int(trace.output_tokens[row])
        bound = 0 if trace.max_output_tokens is None else int(trace.max_output_tokens[row])
        if self._simulated:
            length = f'"vllm_xargs":{{"headway_output_tokens":{output}}}'
            if bound:
                length += f',"max_tokens":{bound}'
        else:
            length = f'"max_tokens":{output},"ignore_eos":true'
        head = f'{{"model":{self._model},"stream":true,"stream_options":{{"include_usage":true}},{length},"prompt":['
        return head.encode() + self._prompt(row)[:-1] + b"]}"

    def _prompt(self, row: int) -> bytes:
        tokens = int(self._trace.prompt_tokens[row])
        if self._trace.prefix_ids is None:
            return self._stretch(f"row {row}", tokens)
        size = self._trace.prefix_block_tokens
        parts, left = [], tokens
        for block in self._trace.prefix_ids[row]:
            take = min(size, left)
            parts.append(self._stretch(f"block {block}", take))
            left -= take
            if not left:
                break
        if left:
            parts.append(self._stretch(f"row {row}", left))
        return b"".join(parts)

    def _stretch(self, name: str, tokens: int) -> bytes:
        """So many ids, the same for the same name: read from a place in the ring, again and again."""
        digest = blake2b(f"{self._seed}/{name}".encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "big") % _RING_TOKENS
        # The name's own number comes first, so that no two stretches begin alike even where their places are near.
        own = b"%d," % (_LOWEST_ID + int.from_bytes(digest[:4], "big") % (_HIGHEST_ID - _LOWEST_ID))
        wanted = (tokens - 1) * _ID_BYTES
        begin = start * _ID_BYTES
        ring = self._ring
        words = ring[begin : begin + wanted]
        while len(words) < wanted:
            words += ring[: wanted - len(words)]
        return own + words
