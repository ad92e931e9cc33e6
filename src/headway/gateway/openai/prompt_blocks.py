"""Keys of the KV blocks that a prompt becomes, where its token ids are known: it is ids, or its model has a tokenizer.

They are made only where a replica's KV events are read, since nothing else looks blocks up. The tokens of a chat are
not known here: they depend on the model's chat template.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import msgspec

from headway.gateway.openai.request_body import Body
from headway.gateway.token_blocks import PromptPrefixes, keys_in_steps, packed

_PIECE_BYTES = 1 << 16  # of JSON with ids, read at a step: about half a millisecond
_IDS = msgspec.json.Decoder(list[int])
_BLANKS = b" \t\r\n"


class CacheShape(NamedTuple):
    """How the replicas of a model cut prompts.

    Attributes:
        block_sizes: tokens of a block, of each replica whose KV events are read.
        adapter: the model's name, where it is a LoRA adapter.
    """

    block_sizes: Collection[int] = ()
    adapter: str = ""


CacheShapeOf = Callable[[str], CacheShape]
"""Model -> how its replicas cut prompts."""


def with_ids(prefixes: PromptPrefixes, body: Body, prompt: bytes, shape: CacheShape) -> Iterator[None]:
    """Add the keys of one prompt of token ids, a bounded part at a step; none if some of it is no id."""
    tokens = bytearray()
    try:
        for piece in _pieces(prompt):
            tokens += packed(_IDS.decode(piece))
            yield
    except (msgspec.DecodeError, OverflowError):
        return  # the replica answers with what is wrong with it
    for _ in _with_tokens(prefixes, body, bytes(tokens), shape):
        yield


def with_tokens(prefixes: PromptPrefixes, body: Body, tokens: Sequence[int], shape: CacheShape) -> None:
    """Add the keys of a prompt with these token ids."""
    for _ in _with_tokens(prefixes, body, packed(tokens), shape):
        pass


def _with_tokens(prefixes: PromptPrefixes, body: Body, tokens: bytes, shape: CacheShape) -> Iterator[None]:
    for size in shape.block_sizes:
        keys: Sequence[int] = ()
        for keys in keys_in_steps(tokens, size, shape.adapter, body.cache_salt):  # noqa: B007 - the last ones are all
            yield
        prefixes.keys[size] = keys


def _pieces(prompt: bytes) -> Iterator[bytes]:
    """A list of ids as short lists; also one list within a list."""
    begin, end = 0, len(prompt)
    while begin < end and prompt[begin] in b"[" + _BLANKS:
        begin += 1
    while end > begin and prompt[end - 1] in b"]" + _BLANKS:
        end -= 1
    while begin < end:
        comma = prompt.rfind(b",", begin, begin + _PIECE_BYTES) if end - begin > _PIECE_BYTES else -1
        stop = end if comma < 0 else comma
        yield b"[%b]" % prompt[begin:stop]
        begin = stop + 1
