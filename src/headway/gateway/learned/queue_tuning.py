"""Live tuner of one queue: which options of its ordering are tried, from which values, on which terms."""

from __future__ import annotations

from collections.abc import Mapping

from headway.gateway.settings import Settings
from headway.tuning.live_tuner import LiveTuner
from headway.tuning.tuned_ordering import tuner_of


def live_tuner(settings: Settings, ordering: object, tuned: Mapping[str, float]) -> LiveTuner:
    """A tuner of this ordering that starts with `tuned`, or else with the options as configured.

    Raises:
        ValueError: the ordering has no option that can be tuned while requests wait, or Optuna is not installed.
    """
    chosen = settings.policies
    try:
        return tuner_of(
            chosen.ordering,
            ordering,
            chosen.options.get("ordering", {}),
            tuned,
            seed=chosen.seed,
            settings=settings.tuning,
        )
    except ValueError as error:
        raise ValueError(f"tuning.on: {error}; set it to false") from None


def check_tuning(settings: Settings) -> None:
    """Raise ValueError, one sentence, if the tuner is on and could not run."""
    if settings.tuning.on:
        live_tuner(settings, object(), {})
