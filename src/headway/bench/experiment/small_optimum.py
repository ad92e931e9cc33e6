"""The hindsight optimum of a small trace, in the papers' model: the replica's memory, one token per step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headway.bench.experiment.saturation import is_closed_loop
from headway.bench.user_mistake import UserMistake
from headway.bounds.discrete import DiscreteRequest, Instance
from headway.bounds.optimum import Optimum, Progress, TooLarge, optimum
from headway.simulator.replica import Replica
from headway.simulator.step_time import PS_PER_SECOND
from headway.simulator.trace import Trace


@dataclass(frozen=True, slots=True)
class SmallOptimum:
    """The optimum, or its bounds, and the seconds that a step stands for (one request decoding alone)."""

    optimum: Optimum
    step_seconds: float
    requests: int

    def to_json(self) -> dict[str, object]:
        """The object under `optimum` in the JSON of `headway bound`."""
        return {
            "step_seconds": self.step_seconds,
            "mean_latency_steps": self.optimum.total_latency / self.requests,
            "bound_steps": self.optimum.bound / self.requests,
            "gap": self.optimum.gap,
            "starts": list(self.optimum.starts),
        }

    def sentence(self) -> str:
        """One sentence for people."""
        mean = self.optimum.total_latency / self.requests
        bound = f"at least {self.optimum.bound / self.requests:.2f}, gap {self.optimum.gap:.1%}"
        standing = "proven" if self.optimum.is_proven else bound
        return (
            f"optimum in the papers' model (one token per step, prefill free): mean latency {mean:.2f} steps, "
            f"{standing}; arrivals were rounded to steps of {1000 * self.step_seconds:.3g} ms"
        )


def small_optimum(
    trace: Trace, replica: Replica, *, time_limit_seconds: float, progress: Progress | None = None
) -> SmallOptimum:
    """Solve the trace exactly in the discrete model, within the time limit.

    Raises:
        UserMistake: the trace is too large, has closed-loop sessions or requests that do not fit; or no solver is
            installed.
    """
    if is_closed_loop(trace):
        raise UserMistake(f"--optimum: {trace.name} has sessions that wait for answers; give --open-loop too")
    fixed, _ = replica.step_time.decode_step(1)
    arrived = np.rint(trace.arrived_seconds * PS_PER_SECOND / fixed).astype(np.int64)
    columns = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), arrived.tolist(), strict=True)
    try:
        instance = Instance(
            tuple(DiscreteRequest(*row) for row in columns), replica.rules.kv_blocks * replica.rules.block_tokens
        )
        solved = optimum(instance, time_limit_seconds=time_limit_seconds, progress=progress)
    except TooLarge as error:
        raise UserMistake(f"--optimum: {error} (--requests takes the first ones only)") from error
    except ImportError:
        raise UserMistake("--optimum needs a solver: pip install 'headway[opt]'") from None
    except ValueError as error:
        raise UserMistake(f"--optimum: {error}") from error
    return SmallOptimum(solved, fixed / PS_PER_SECOND, len(trace))
