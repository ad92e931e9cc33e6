"""Live tuner of an ordering by name: which of its options it moves, and their first values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from headway.policies.catalog import find, own_options
from headway.policies.contracts import Retunable
from headway.tuning.live_tuner import LiveTuner
from headway.tuning.search import SearchBox
from headway.tuning.tuning_settings import TuningSettings


def tuner_of(
    name: str,
    ordering: object,
    options: Mapping[str, Any],
    tuned: Mapping[str, float],
    *,
    seed: int,
    settings: TuningSettings,
) -> LiveTuner:
    """A tuner of this ordering that begins with `tuned`, else with the options as configured.

    Its sampler is TPE, which answers in milliseconds: a process that serves requests cannot wait longer.

    Raises:
        ValueError: the ordering declares nothing that could be tuned while requests wait, or Optuna is not installed.
    """
    if "/" in name or not issubclass(find("ordering", name), Retunable):
        raise ValueError(f"{name} has no options that can be tuned while requests wait")
    policy = find("ordering", name)
    box = SearchBox.of(policy, name)
    defaults = {option: parameter.default for option, parameter in own_options(policy).items()}
    start = {**defaults, **options, **tuned}
    values = {option: float(start[option]) for option in box.names()}
    return LiveTuner(cast(Retunable, ordering), box, values, seed=seed, settings=settings, sampler="tpe")
