"""Own blocks counted as lengths of a queue are the blocks that `CachedBlocks` keeps one stretch at a time."""

from __future__ import annotations

import random

import pytest

from headway.simulator.own_blocks import OwnBlocks
from headway.simulator.prefix_cache import CachedBlocks
from headway.simulator.tracked import TrackedRequest


def request(row: int, prompt: int) -> TrackedRequest:
    return TrackedRequest(row, 0.0, prompt, "", None, None, None, 0, False)


class Twins:
    """The same requests in both memories; every answer is compared."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.block = block_tokens
        self.own = OwnBlocks(blocks, block_tokens)
        self.cached = CachedBlocks(blocks, block_tokens, None, 512)
        self.waiting: list[tuple[TrackedRequest, TrackedRequest]] = []
        self.running: list[tuple[TrackedRequest, TrackedRequest, int]] = []  # and the tokens it holds
        self.found = self.copies = 0

    def look(self) -> None:
        assert self.own.free == self.cached.free
        for own, cached in self.waiting:
            assert self.own.cached_tokens(own) == self.cached.cached_tokens(cached)
            total = own.prompt_tokens + own.produced_tokens
            hit = self.own.cached_tokens(own)
            assert self.own.need(own, total, hit) == self.cached.need(cached, total, hit)
        self.copies += sum(len(stretches) > 1 for stretches in self.own._stretches.values())

    def admit(self, place: int, tokens: int) -> None:
        own, cached = self.waiting[place]
        hit = self.own.cached_tokens(own)
        tokens = min(hit + tokens, own.prompt_tokens + own.produced_tokens)
        if self.own.need(own, tokens, hit) > self.own.free:
            return
        del self.waiting[place]
        self.found += hit
        self.own.admit(own, tokens, hit)
        self.cached.admit(cached, tokens, hit)
        assert own.blocks == cached.blocks
        self.running.append((own, cached, tokens))

    def grow(self, place: int) -> None:
        own, cached, tokens = self.running[place]
        total = own.prompt_tokens + own.produced_tokens
        more = min(tokens + 1 + 3 * (tokens < total), max(total, tokens + 1))
        if -(-more // self.block) - own.blocks > self.own.free:
            return
        if tokens < total:
            self.own.extend(own, more)
            self.cached.extend(cached, more)
        else:  # decoding: blocks are counted, and the token before is known now
            blocks = -(-more // self.block) - own.blocks
            self.own.take(blocks)
            self.cached.take(blocks)
            own.blocks = cached.blocks = own.blocks + blocks
        for each in (own, cached):
            each.produced_tokens += more > total
        self.running[place] = (own, cached, more)

    def release(self, place: int, keep: bool) -> None:
        own, cached, tokens = self.running.pop(place)
        self.own.release(own, tokens, own.blocks, keep)
        self.cached.release(cached, tokens, cached.blocks, keep)
        if keep:
            self.waiting.insert(0, (own, cached))


@pytest.mark.parametrize("block_tokens", [1, 2, 16])
def test_the_same_blocks_are_found(block_tokens: int) -> None:
    found = copies = 0
    for seed in range(25):
        dice = random.Random(seed)
        twins = Twins(dice.randint(6, 40), block_tokens)
        for row in range(30):
            prompt = dice.randint(1, 5 * block_tokens)
            twins.waiting.append((request(row, prompt), request(row, prompt)))
        for _ in range(400):
            twins.look()
            deed = dice.random()
            if deed < 0.3 and twins.waiting:
                twins.admit(dice.randrange(min(4, len(twins.waiting))), dice.randint(1, 2 * block_tokens))
            elif deed < 0.85 and twins.running:
                twins.grow(dice.randrange(len(twins.running)))
            elif twins.running:
                twins.release(dice.randrange(len(twins.running)), keep=dice.random() < 0.8)
        found += twins.found
        copies += twins.copies
    assert found > 500 * block_tokens, "blocks were found again"
    assert copies > 100, "some were there twice"


def test_of_two_copies_the_older_is_taken_out_of_the_queue() -> None:
    """Blocks of one token, six of them. The queue of free blocks is written from its front, copies with a prime."""
    twins = Twins(6, 1)
    b = (request(1, 2), request(1, 2))
    twins.waiting = [(request(0, 2), request(0, 2)), b]
    twins.admit(0, 2)
    twins.release(0, keep=True)
    twins.admit(0, 2)  # finds a0; its last token has to be computed again, beside a1
    twins.admit(0, 2)
    twins.release(1, keep=True)  # b: a1 b1 b0
    twins.grow(0)  # its third token
    twins.release(0, keep=True)  # a: a1 b1 b0 a2 a1' a0
    twins.look()
    twins.admit(0, 1)  # finds a0 and a1, takes b1: b0 a2 a1'
    twins.look()
    assert twins.own.cached_tokens(b[0]) == 1
    twins.grow(0)  # takes b0: a2 a1'
    twins.look()
    assert twins.own.cached_tokens(b[0]) == 0
