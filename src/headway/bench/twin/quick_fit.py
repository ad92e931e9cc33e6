"""Quick fit: a linear step time that explains what the engine took, cheap enough for every look.

`bench.calibration` fits all five coefficients in some hundred replays. Here two factors are fitted, of what prompts
and of what decodes cost, from the last fit on; the first look begins with the guess of the full fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from headway.bench.calibration.linear_fit import first_guess, log_errors, model
from headway.bench.calibration.replay import replay
from headway.bench.metrics.recording import Recording
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import LinearStepTime

Floats = npt.NDArray[np.float64]
_PROMPT = np.array([0.0, 1.0, 0.0, 0.0, 1.0])  # fixed, token, context, request, pair
_DECODE = np.array([1.0, 0.0, 1.0, 1.0, 0.0])
_WIDE, _NARROW = (1.2, 0.6, 0.3, 0.15, 0.07), (0.2, 0.1, 0.05)


def quick_fit(recording: Recording, rules: EngineRules, last: Sequence[int]) -> LinearStepTime:
    """Fit to the measured times of `recording`; `last` are the coefficients of the last fit, () for none.

    Raises:
        ValueError: nothing was measured that a first guess could be made of.
    """
    begins = np.log(np.maximum(np.array(last, float), 1.0)) if len(last) == 5 else first_guess(recording)

    def cost(place: Floats) -> float:
        ttft, e2e, _ = replay(recording, rules, model(place))
        return float(np.mean(np.minimum(np.abs(log_errors(recording, ttft, e2e)), 1.0)))

    return model(_descend(cost, begins, _NARROW if len(last) == 5 else _WIDE))


def _descend(cost: Callable[[Floats], float], place: Floats, steps: Sequence[float]) -> Floats:
    """Steps along each direction, smaller and smaller ones, as long as they help."""
    best = cost(place)
    for step in steps:
        for direction in (_PROMPT + _DECODE, _DECODE, _PROMPT):
            for sign in (1.0, -1.0):
                while (value := cost(place + sign * step * direction)) < best - 1e-6:
                    place, best = place + sign * step * direction, value
    return place
