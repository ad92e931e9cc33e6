"""Settings of `ordering = "auto"`, the same in the gateway and in the vLLM plug-in; the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from headway.config.typed_values import Bounds
from headway.config.wanted_objective import WantedObjective, read_wanted

AUTO = "auto"
"""What an operator writes in place of an order's name."""
_Above0: TypeAlias = Annotated[float, Bounds(above=0)]
_Seconds: TypeAlias = Annotated[float, Bounds(least=1, unit="seconds")]
_Factor: TypeAlias = Annotated[float, Bounds(least=1)]


@dataclass(frozen=True, slots=True)
class AutoSettings:
    """What the twin of `ordering = "auto"` wants, and what it may use.

    Attributes:
        on: Whether the order is chosen by a twin. `ordering = "auto"` sets it.
        objective: What is wanted, as in `headway recommend`: a name, `goodput(ttft=2s,tpot=100ms)`, or `FILE.toml` with
            weights and bounds, which is read again at a reload.
        ttft_seconds: A time to first token above this misses, where the objective counts what misses and gives no
            bounds itself.
        tpot_seconds: A time per output token above this misses, likewise.
        begin: With which order it begins: "objective", the one that did best by the objective on other traffic, or
            "configured", the one of `[policies]`. That one is what it returns to.
        window_requests: The latest requests, which are replayed.
        look_seconds: Shortest time between two looks.
        cpu_share: Share of one core that the twin may use on average: after a look it pauses until this holds.
        memory_mb: Memory of its process, at most, in MiB; a process that takes more is ended.
        answer_seconds: A look that takes longer is ended with its process.
        gain: Least factor by which another bundle must be expected to be better for a switch, by the objective.
        sure: For an objective that rests on a tail, which a few requests decide: share of the draws of a paired
            bootstrap in which it has to be better besides.
        looks: Likewise, so many looks in a row must agree on a switch.
        parted: Where a prediction and the measurement part by more than this factor, the default comes back.
        fence_seconds: For so long a bundle that was mispredicted is not chosen again.
    """

    on: bool = False
    objective: str = "balanced"
    ttft_seconds: _Above0 = 2.0
    tpot_seconds: _Above0 = 0.1
    begin: Literal["objective", "configured"] = "objective"
    window_requests: Annotated[int, Bounds(least=200, most=20_000)] = 4_000
    look_seconds: _Seconds = 20.0
    cpu_share: Annotated[float, Bounds(least=0.001, most=1)] = 0.05
    memory_mb: Annotated[int, Bounds(least=100)] = 300
    answer_seconds: _Seconds = 300.0
    gain: _Factor = 1.1
    sure: Annotated[float, Bounds(least=0.5, most=1)] = 0.95
    looks: Annotated[int, Bounds(least=1, most=10)] = 2
    parted: Annotated[float, Bounds(above=1)] = 2.0
    fence_seconds: _Seconds = 3_600.0

    def __post_init__(self) -> None:
        """Raises ValueError, one sentence, where the objective is none."""
        self.wanted()

    def wanted(self) -> WantedObjective:
        """The objective as it is read now. Raises ValueError, one sentence, where its file became unreadable."""
        return read_wanted(self.objective, "auto.objective")
