"""Optimiser: Bayesian optimisation over the unit cube, by Optuna. Ask for a point, then tell its reward.

A Gaussian process with expected improvement where its dependencies are installed (torch and scipy), as the paper has
it; Optuna's tree-structured Parzen estimator (TPE) otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from headway.tuning.search import Fences, SearchBox, Shares

if TYPE_CHECKING:
    import optuna

Sampler: TypeAlias = Literal["gp", "tpe"]

_ASKED_AGAIN = 20  # times, before the point farthest from all fences is taken
_STARTUP_TRIALS = 4  # at random, before the model is believed; an operator has 5 to 8 windows, not 100


def best_sampler() -> Sampler:
    """The Gaussian process if it can run here."""
    return "gp" if find_spec("torch") is not None and find_spec("scipy") is not None else "tpe"


class Optimiser:
    """One search; maximises. The same seed and the same rewards give the same points.

    Raises:
        ValueError: Optuna is not installed.
    """

    def __init__(
        self, box: SearchBox, *, seed: int, fences: Fences | None = None, sampler: Sampler | None = None
    ) -> None:
        self.box = box
        self.fences = fences if fences is not None else Fences()
        self.sampler = sampler or best_sampler()
        self.results: list[tuple[Shares, float]] = []
        self._optuna = _import_optuna()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Optuna calls half of what it has experimental
            self._study = self._optuna.create_study(direction="maximize", sampler=self._make_sampler(seed))
        space = {name: self._optuna.distributions.FloatDistribution(0.0, 1.0) for name in box.names()}
        self._space: dict[str, Any] = space
        self._open: dict[int, optuna.trial.Trial] = {}

    def suggest(self, values: Mapping[str, float]) -> None:
        """Try these values next."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._study.enqueue_trial(self.box.shares(values))

    def ask(self) -> tuple[int, Shares]:
        """A number for `tell`, and the point to try; outside the fences if the search finds one."""
        fenced: list[optuna.trial.Trial] = []
        for _ in range(_ASKED_AGAIN):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial = self._study.ask(self._space)
            if not self.fences.forbids(trial.params):
                break
            fenced.append(trial)
        else:
            trial = max(fenced, key=lambda candidate: self.fences.distance(candidate.params))
            fenced.remove(trial)
        for other in fenced:
            self._study.tell(other, state=self._optuna.trial.TrialState.FAIL)
        self._open[trial.number] = trial
        return trial.number, dict(trial.params)

    def tell(self, number: int, reward: float) -> None:
        """Record the reward of a point."""
        trial = self._open.pop(number)
        self.results.append((dict(trial.params), reward))
        self._study.tell(trial, reward)

    def recall(self, values: Mapping[str, float], reward: float) -> None:
        """Record a point and its reward from an earlier run of this search."""
        shares = self.box.shares(values)
        self.results.append((shares, reward))
        trial = self._optuna.trial.create_trial(params=shares, distributions=self._space, value=reward)
        self._study.add_trial(trial)

    def best(self) -> tuple[Shares, float] | None:
        """The best point and its reward; the earlier of equals; None before any."""
        return max(self.results, key=lambda result: result[1], default=None)

    def _make_sampler(self, seed: int) -> Any:
        samplers = self._optuna.samplers
        if self.sampler == "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, deterministic_objective=False)
        return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, multivariate=True)


def _import_optuna() -> Any:
    try:
        import optuna  # noqa: PLC0415 - an extra, and slow to import
    except ModuleNotFoundError as missing:
        raise ValueError("tuning needs Optuna, which is not installed: pip install 'headway[tune]'") from missing
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
