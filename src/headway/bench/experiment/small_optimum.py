"""The hindsight optimum of a small trace, in the papers' model: the replica's memory, a token a step."""

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
    """What was found, and the seconds that a step stands for (one request decoding alone)."""

    found: Optimum
    step_seconds: float
    requests: int

    def to_json(self) -> dict[str, object]:
        """The object under `optimum` in the JSON of `headway bound`."""
        return {
            "step_seconds": self.step_seconds,
            "mean_latency_steps": self.found.total_latency / self.requests,
            "bound_steps": self.found.bound / self.requests,
            "gap": self.found.gap,
            "starts": list(self.found.starts),
        }

    def sentence(self) -> str:
        """One sentence for people."""
        mean = self.found.total_latency / self.requests
        standing = (
            "proven"
            if self.found.is_proven
            else f"at least {self.found.bound / self.requests:.2f}, gap {self.found.gap:.1%}"
        )
        return (
            f"optimum in the papers' model (a token a step, prefill free): mean latency {mean:.2f} steps, {standing}; "
            f"arrivals were put on steps of {1000 * self.step_seconds:.3g} ms"
        )


def small_optimum(
    trace: Trace, replica: Replica, *, time_limit_seconds: float, progress: Progress | None = None
) -> SmallOptimum:
    """Solve the trace exactly in the discrete model, as far as time allows.

    Raises:
        UserMistake: the trace is too large, has closed-loop sessions or requests that do not fit; or no solver is
            installed.
    """
    if is_closed_loop(trace):
        raise UserMistake(f"--optimum: {trace.name} has sessions that wait for their answers; give --open-loop as well")
    fixed, _ = replica.step_time.decode_step(1)
    arrived = np.rint(trace.arrived_seconds * PS_PER_SECOND / fixed).astype(np.int64)
    columns = zip(trace.prompt_tokens.tolist(), trace.output_tokens.tolist(), arrived.tolist(), strict=True)
    try:
        instance = Instance(
            tuple(DiscreteRequest(*row) for row in columns), replica.rules.kv_blocks * replica.rules.block_tokens
        )
        found = optimum(instance, time_limit_seconds=time_limit_seconds, progress=progress)
    except TooLarge as error:
        raise UserMistake(f"--optimum: {error} (--requests takes the first ones only)") from error
    except ImportError:
        raise UserMistake("--optimum needs a solver: pip install 'headway[opt]'") from None
    except ValueError as error:
        raise UserMistake(f"--optimum: {error}") from error
    return SmallOptimum(found, fixed / PS_PER_SECOND, len(trace))
