"""The live tuner of one queue: which options of its ordering are moved, from where, and on which terms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from headway.gateway.settings import Settings
from headway.policies.catalog import find, own_options
from headway.policies.tunable import Retunable
from headway.tuning.live import LiveSettings, LiveTuner
from headway.tuning.rewards import Objective
from headway.tuning.search import SearchBox


def live_tuner(settings: Settings, ordering: object, tuned: Mapping[str, float]) -> LiveTuner:
    """A tuner of this ordering that begins with `tuned`, else with the options as configured.

    Raises:
        ValueError: the ordering declares nothing that could be tuned while requests wait, or Optuna is not installed.
    """
    name, terms = settings.policies.ordering, settings.tuning
    if "/" in name or not hasattr(find("ordering", name), "retune"):
        raise ValueError(f"tuning.on: {name} has no options that can be tuned while requests wait; set it to false")
    policy = find("ordering", name)
    box = SearchBox.of(policy, name)
    defaults = {option: parameter.default for option, parameter in own_options(policy).items()}
    start = {**defaults, **settings.policies.options.get("ordering", {}), **tuned}
    return LiveTuner(
        cast(Retunable, ordering),
        box,
        {option: float(start[option]) for option in box.names()},
        seed=settings.policies.seed,
        settings=LiveSettings(
            window_seconds=terms.window_seconds,
            trials=terms.trials,
            harm=terms.harm,
            objective=Objective(terms.ttft_seconds, terms.starved_seconds),
        ),
        sampler="tpe",  # it asks in milliseconds; the event loop waits for it once a window
    )


def check_tuning(settings: Settings) -> None:
    """Raise ValueError, one sentence, if the tuner is on and could not run."""
    if settings.tuning.on:
        live_tuner(settings, object(), {})
