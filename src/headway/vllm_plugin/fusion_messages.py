"""What the two halves of fusion inside vLLM tell each other: the scheduler's order, the worker's report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlaceOrder:
    """Blocks at one place of their prompts, to be compared with each other.

    Attributes:
        blocks: ids, each once; full, and written to by no one while the order is carried out.
        weights: table entries that point to each.
        kept: how many of the first are representatives already: they are joined and never altered.
    """

    blocks: tuple[int, ...]
    weights: tuple[int, ...]
    kept: int


@dataclass(frozen=True, slots=True)
class FusionOrder:
    """What the worker shall compare after this step.

    Attributes:
        places: each compared by itself.
        spares: ids of blocks that no request has, for new representatives.
        bound: least likeness of a block with its representative, in (0, 1].
    """

    places: tuple[PlaceOrder, ...]
    spares: tuple[int, ...]
    bound: float


@dataclass(frozen=True, slots=True)
class FusedBlock:
    """A representative that is within the bound of these blocks.

    Attributes:
        place: index into the order's places.
        target: a spare that now holds a mean, or a kept representative.
        members: blocks that it can stand for.
    """

    place: int
    target: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class FusionReport:
    """What came of an order.

    Attributes:
        fused: in the order in which they were found.
        fault: one clause if the worker failed; then nothing is fused.
    """

    fused: tuple[FusedBlock, ...] = ()
    fault: str = ""
