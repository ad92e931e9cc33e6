"""Repeats of a comparison, from which its error bars come: other seeds of a workload, or blocks of a recorded trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from headway.bench.metrics.samples import LEVEL
from headway.bench.user_mistake import UserMistake
from headway.simulator.trace import Trace

REPEATS_MIN = 3
_WAITS_IN_A_BLOCK = 3  # a block should be so many times as long as the longest wait, as stretches of `recommend`


@dataclass(frozen=True, slots=True)
class Repeats:
    """What to repeat; `further` are the traces of the seeds after the first, none where blocks are repeated."""

    count: int
    further: Sequence[Trace] = ()

    def __post_init__(self) -> None:
        if self.count < REPEATS_MIN:
            raise UserMistake(f"{self.count} repeats are too few for error bars; take at least {REPEATS_MIN}")
        if self.further and len(self.further) != self.count - 1:
            raise ValueError(f"{self.count} repeats need {self.count - 1} further traces, got {len(self.further)}")

    @property
    def kind(self) -> Literal["seeds", "blocks"]:
        """What is repeated."""
        return "seeds" if self.further else "blocks"


class Blocks(NamedTuple):
    """How long the blocks of one load are, and whether its longest wait would ask for longer ones."""

    seconds: float
    is_short: bool

    @classmethod
    def of(cls, trace: Trace, count: int, longest_wait_seconds: float) -> Blocks:
        """Those of a trace as it is replayed."""
        seconds = float(trace.arrived_seconds[-1] - trace.arrived_seconds[0]) / count
        return cls(seconds, seconds < _WAITS_IN_A_BLOCK * longest_wait_seconds)


@dataclass(frozen=True, slots=True)
class RepeatFacts:
    """What the error bars of a comparison rest on.

    Attributes:
        count: seeds, or blocks.
        seeds: each; empty of blocks.
        blocks: at each load; empty of seeds.
    """

    count: int
    seeds: Sequence[int] = ()
    blocks: Mapping[float | None, Blocks] = field(default_factory=dict)

    @property
    def kind(self) -> Literal["seeds", "blocks"]:
        """What is repeated."""
        return "seeds" if self.seeds else "blocks"

    def to_json(self) -> dict[str, Any]:
        """The object `repeats`, as docs/json.md describes it."""
        blocks = [
            {"load": load, "block_seconds": one.seconds, "is_short": one.is_short} for load, one in self.blocks.items()
        ]
        return {"kind": self.kind, "count": self.count, "level": LEVEL, "seeds": list(self.seeds), "blocks": blocks}
