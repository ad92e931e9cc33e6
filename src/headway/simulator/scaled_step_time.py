"""Step times after calibration: a built-in profile under one to four scalars.

Laws: whole picoseconds; affine in the decodes' context for a fixed batch; with neutral scalars the profile, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headway.simulator.step_time import Chunk, FlooredStepTime, StepFloor

_PS_PER_US = 1_000_000


@dataclass(frozen=True, slots=True)
class Scalars:
    """Factors between a measured engine and the profile of its card and model; the defaults change nothing.

    Attributes:
        step_scale: factor on every step.
        kv_scale: factor on what decodes pay for their context.
        prompt_step_scale: factor on steps that compute part of a prompt.
        step_us: added to every step, µs; what the host adds and kernels do not show.
    """

    step_scale: float = 1.0
    kv_scale: float = 1.0
    prompt_step_scale: float = 1.0
    step_us: float = 0.0

    def __post_init__(self) -> None:
        for name in ("step_scale", "kv_scale", "prompt_step_scale"):
            if not 0.01 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} must be a factor from 0.01 to 100, got {getattr(self, name)}")
        if not 0 <= self.step_us <= 1e7:
            raise ValueError(f"step_us must be from 0 to 10 million µs, got {self.step_us}")


class ScaledStepTime:
    """`StepTime` of a profile under `Scalars`; see there for what each of them multiplies."""

    def __init__(self, profile: FlooredStepTime, scalars: Scalars) -> None:
        self._profile = profile
        self._scalars = scalars
        self._fixed = round(scalars.step_us * _PS_PER_US)

    def decode_step(self, requests: int) -> tuple[int, int]:
        """Fixed part, and slope per token of context, of a step of decodes only."""
        fixed, slope = self._profile.decode_step(requests)
        return self._scaled(fixed), self._slope(slope)

    def mixed_step(self, decodes: int, context_tokens: int, chunks: Sequence[Chunk], sampled: int) -> int:
        """Duration of any step: context scaled by `kv_scale`, steps with chunks by `prompt_step_scale`."""
        alone = self._profile.mixed_step(decodes, 0, chunks, sampled)
        if not chunks:
            return self._scaled(alone) + (context_tokens * self.decode_step(decodes)[1] if decodes else 0)
        context = self._profile.mixed_step(decodes, context_tokens, chunks, sampled) - alone
        scalars = self._scalars
        factor = scalars.step_scale * scalars.prompt_step_scale
        return round((alone + context * scalars.kv_scale) * factor) + self._fixed

    def floors(self, tokens_max: int, requests_max: int) -> tuple[StepFloor, ...]:
        """The profile's floors, under the smaller of the factors.

        A picosecond pays for rounding a step, half of one per token of context for rounding the slope.
        """
        scalars = self._scalars
        least = scalars.step_scale * min(1.0, scalars.prompt_step_scale)
        return tuple(
            StepFloor(
                fixed=floor.fixed * least + self._fixed - 1,
                sampled_fixed=floor.sampled_fixed * least,
                prompt_token=floor.prompt_token * least,
                decode_token=floor.decode_token * least,
                sample=floor.sample * least,
                context=max(0.0, floor.context * least * scalars.kv_scale - 0.5),
                chunk_context=floor.chunk_context * least,
                pair=floor.pair * least,
            )
            for floor in self._profile.floors(tokens_max, requests_max)
        )

    def _scaled(self, fixed: int) -> int:
        return round(fixed * self._scalars.step_scale) + self._fixed

    def _slope(self, slope: int) -> int:
        return max(1, round(slope * self._scalars.step_scale * self._scalars.kv_scale))
