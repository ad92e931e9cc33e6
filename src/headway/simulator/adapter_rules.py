"""LoRA adapters of a simulated replica: which it serves, how many are resident at once, and what one takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Paging: TypeAlias = Literal["slots", "unified"]
"""Where adapters are.

"slots", as in vLLM: in memory set aside for `resident_max` of them, where one stays until its slot is needed.
"unified", as in S-LoRA: in pages of the KV memory, while a request of it runs.
"""


@dataclass(frozen=True, slots=True)
class AdapterRules:
    """What a replica's engine does about LoRA adapters. All of them are of one size.

    Attributes:
        resident_max: adapters in GPU memory at once, at most (vLLM's `max_loras`).
        blocks: KV blocks that one takes. With slots they are not among the replica's `kv_blocks`.
        load_ps: picoseconds by which bringing one in lengthens the step of its first request.
        paging: see `Paging`.
        names: those that it serves; None for any.
    """

    resident_max: int = 8
    blocks: int = 0
    load_ps: int = 0
    paging: Paging = "slots"
    names: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.resident_max < 1:
            raise ValueError(f"adapters.resident_max must be at least 1, got {self.resident_max}")
        for name in ("blocks", "load_ps"):
            if getattr(self, name) < 0:
                raise ValueError(f"adapters.{name} must not be negative, got {getattr(self, name)}")

    @property
    def paged_blocks(self) -> int:
        """Blocks of the KV memory that an adapter in use takes."""
        return self.blocks if self.paging == "unified" else 0

    def serves(self, adapter: str | None) -> bool:
        """Whether the replica has this adapter; each has the base model, which is None."""
        return adapter is None or self.names is None or adapter in self.names
