"""KV memory of the reference engine, block by block: vLLM's `BlockPool` and `KVCacheManager` written for reading.

Every block is an object with a content key (once it is full and prefix caching is on) and a count of the requests that
use it. Free blocks stand in one line; the next one to be handed out stands in front.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol, TypeAlias

from headway.simulator.trace import Trace

ContentKey: TypeAlias = tuple[Hashable, int]
"""What a full block holds: (whose content, position of the block in its request)."""

ContentKeyOf: TypeAlias = Callable[[int, int], ContentKey]
"""(row of a request, position of a block in it) → what that block holds once it is full."""


class Block:
    """One block of KV memory."""

    __slots__ = ("key", "users")

    def __init__(self) -> None:
        self.key: ContentKey | None = None
        self.users = 0


class Holder(Protocol):
    """What the memory reads and writes of a request."""

    row: int
    blocks: list[Block]  # in order of position
    named_blocks: int  # how many of them, from the first, were looked at for naming

    @property
    def total_tokens(self) -> int:
        """Tokens known: prompt, and outputs so far."""


class ContentKeys:
    """The content key of any full block of any request of one trace: equal keys, equal content.

    An engine block that lies wholly inside the part of the prompt that `Trace.prefix_ids` covers is named by the id of
    the trace block that holds its last token. An equal id means an equal prefix up to there, so this plays the part of
    vLLM's chain hash (`kv_cache_utils.hash_block_tokens`). Every other block (the rest of the prompt, outputs) is named
    by its row: no other request will find it, the request itself will, after a preemption.
    """

    def __init__(self, trace: Trace, block_tokens: int) -> None:
        self._prefix_ids = trace.prefix_ids
        self._prompt_tokens = trace.prompt_tokens
        self._prefix_block_tokens = trace.prefix_block_tokens
        self._block_tokens = block_tokens

    def key(self, row: int, position: int) -> ContentKey:
        """Key of block number `position` of this row."""
        end = (position + 1) * self._block_tokens
        if self._prefix_ids is not None:
            ids = self._prefix_ids[row]
            covered = min(int(self._prompt_tokens[row]), len(ids) * self._prefix_block_tokens)
            if end <= covered:
                return int(ids[(end - 1) // self._prefix_block_tokens]), position
        return unshared_key(row, position)


def unshared_key(row: int, position: int) -> ContentKey:
    """Key of a block whose content no other request has."""
    return ("row", row), position


class ReferenceBlockMemory:
    """All KV blocks of one replica (the null block of vLLM is not among them)."""

    def __init__(self, blocks: int, block_tokens: int, content_key: ContentKeyOf | None) -> None:
        """`content_key` is None without prefix caching."""
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._content_key = content_key
        self._line: OrderedDict[Block, None] = OrderedDict((Block(), None) for _ in range(blocks))
        self._fused: dict[Hashable, dict[int, Block]] = {}  # kind → position → the block that alike ones are kept in
        self._copies: dict[ContentKey, list[Block]] = {}  # blocks that hold a content, oldest copy first

    @property
    def free(self) -> int:
        """Blocks that no request uses, whether or not their content could still be found."""
        return len(self._line)

    def find(self, request: Holder) -> list[Block]:
        """The longest run of cached blocks from the start of the request; changes nothing.

        At most `total_tokens - 1` tokens, rounded down to whole blocks: the last token must be computed, or there would
        be nothing to sample from (`KVCacheManager.get_computed_blocks`). Of several copies the oldest is taken
        (`BlockHashToBlockMap.get_one_block`).
        """
        hits: list[Block] = []
        if self._content_key is None:
            return hits
        for position in range((request.total_tokens - 1) // self.block_tokens):
            copies = self._copies.get(self._content_key(request.row, position))
            if copies is None:
                break
            hits.append(copies[0])
        return hits

    def needed(self, tokens: int, hits: Sequence[Block]) -> int:
        """Free blocks that a waiting request takes to hold `tokens`, of which `hits` are cached.

        A cached block without users stands in the line of free blocks, so reviving it takes a free block too
        (`SingleTypeKVCacheManager.get_num_blocks_to_allocate`).
        """
        revived = sum(1 for block in hits if block.users == 0)
        return self._blocks_of(tokens) - len(hits) + revived

    def admit(self, request: Holder, tokens: int, hits: Sequence[Block]) -> None:
        """Give a waiting request its cached blocks and new ones up to `tokens`; the caller has checked that they fit.

        (`BlockPool.touch`, then `get_new_blocks`, then `cache_full_blocks`.)
        """
        for block in hits:
            if block.users == 0:
                del self._line[block]
            block.users += 1
        request.blocks = list(hits)
        request.named_blocks = len(hits)
        self._append(request, self._blocks_of(tokens) - len(hits))
        self.name_full_blocks(request, min(tokens, request.total_tokens))

    def extend(self, request: Holder, tokens: int) -> bool:
        """Let a running request hold `tokens`; False, and nothing changed, if there are not enough free blocks.

        (`KVCacheManager.allocate_slots`.)
        """
        more = max(0, self._blocks_of(tokens) - len(request.blocks))
        if more > self.free:
            return False
        self._append(request, more)
        self.name_full_blocks(request, min(tokens, request.total_tokens))
        return True

    def name_full_blocks(self, request: Holder, tokens: int) -> None:
        """Make every full block among the first `tokens` findable (`BlockPool.cache_full_blocks`).

        vLLM does so as soon as the blocks are handed out, before their content is computed, so a later request of the
        same step finds them already. A second copy of a content is kept beside the first, not merged with it.
        """
        if self._content_key is None:
            return
        full = tokens // self.block_tokens
        for position in range(request.named_blocks, full):
            block = request.blocks[position]
            block.key = self._content_key(request.row, position)
            self._copies.setdefault(block.key, []).append(block)
        request.named_blocks = max(request.named_blocks, full)

    def fuse(self, request: Holder, kind: Hashable, blocks: int) -> None:
        """The first `blocks` of a request are alike to those of others of its kind: all point to one block for each.

        The first to come keeps its own, and its block stands for those that follow (`block_sharing`).
        """
        kept = self._fused.setdefault(kind, {})
        for position in range(blocks):
            own = request.blocks[position]
            one = kept.setdefault(position, own)
            if one is not own:
                one.users += 1
                request.blocks[position] = one
                own.users = 0
                self._line[own] = None

    def release(self, request: Holder) -> None:
        """Take all blocks of a request back; the content of the named ones stays findable until they are reused.

        Blocks without a key go to the front of the line, the others to its end, the last block of the request first:
        so the deepest part of a prefix is the first to be lost (`KVCacheManager.free`, `BlockPool.free_blocks`).
        """
        nameless: list[Block] = []
        for block in reversed(request.blocks):
            block.users -= 1
            if block.users:
                continue
            if block.key is None:
                nameless.append(block)
            else:
                self._line[block] = None
        self._forget_fused(nameless)
        for block in reversed(nameless):
            self._line[block] = None
            self._line.move_to_end(block, last=False)
        request.blocks = []
        request.named_blocks = 0

    def _forget_fused(self, freed: Sequence[Block]) -> None:
        """Blocks that no request uses any more stand for no others."""
        for kept in self._fused.values():
            for position in [position for position, block in kept.items() if block in freed]:
                del kept[position]

    def hand_out(self, holder: Holder, blocks: int) -> None:
        """Give so many blocks to a holder that is no request; the caller has checked that they fit."""
        self._append(holder, blocks)

    def _blocks_of(self, tokens: int) -> int:
        return -(-tokens // self.block_tokens)

    def _append(self, request: Holder, count: int) -> None:
        """Hand out the first blocks of the line; what they held is lost (`BlockPool.get_new_blocks`)."""
        for _ in range(count):
            block, _nothing = self._line.popitem(last=False)
            if block.key is not None:
                copies = self._copies[block.key]
                copies.remove(block)
                if not copies:
                    del self._copies[block.key]
                block.key = None
            block.users = 1
            request.blocks.append(block)
