"""Settings of the live tuner, the same in the gateway and in the vLLM plug-in; the standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from headway.config.typed_values import Bounds

_Above0: TypeAlias = Annotated[float, Bounds(above=0)]


@dataclass(frozen=True, slots=True)
class TuningSettings:
    """Live tuning: options of the ordering are tried on the real traffic, one set of values per window.

    Attributes:
        on: Whether it runs. The ordering must declare tunable options; `headway explain` lists them.
        window_seconds: Length of one trial. The EWSJF paper (arXiv 2601.21758) has 10 to 15 minutes.
        trials: Trials after which the best values are kept, until the workload changes. The paper settles in 5 to 8.
        harm: A trial ends early when its p99 wait is this many times that of first come, first served, and above
            `ttft_seconds`.
        ttft_seconds: A TTFT above this counts as a miss.
        starved_seconds: A TTFT above this counts as starved.
    """

    on: bool = False
    window_seconds: _Above0 = 600.0
    trials: Annotated[int, Bounds(least=1)] = 8
    harm: _Above0 = 1.25
    ttft_seconds: _Above0 = 2.0
    starved_seconds: _Above0 = 60.0
