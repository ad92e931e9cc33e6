"""Length predictor by gradient-boosted quantiles, trained beside the scheduler and swapped in when ready."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from headway.domain.estimate import LengthEstimate
from headway.domain.event import Arrived, Cancelled, Completed, Event
from headway.domain.piecewise_estimate import PiecewiseEstimate
from headway.domain.request import RequestId, RequestView
from headway.policies.prediction.histogram import Histogram

Floats = npt.NDArray[np.float64]

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.9, 0.99)
"""The quantiles that are fitted, one model each."""
FEATURES = ("prompt", "cached", "bound", "tenant", "turns", "previous output", "last output")


_LONGEST_LOGARITHM = math.log(2**24)
_SESSIONS_MAX = 20_000
_TENANTS_MAX = 20_000


class QuantileBoosting:
    """Quantiles fitted to the last completions by boosted trees; until the first fit, the histogram predictor.

    Idea: a length depends on tenant, prompt, bound and the conversation so far in ways no one writes down. Fit trees
        for six quantiles of it to the last completions, again and again, and use the newest ones that are ready.
    Source: gradient boosting with the pinball loss as in LightGBM (Ke et al., NIPS 2017; extra `ml`), on the logarithm
        of the length; quantiles that cross are sorted. JITServe (arXiv 2504.20068) uses a quantile forest. Fitted every
        `refit_requests` completions to the last `window_requests`. `training` "inline" fits on the spot, so that a
        simulated run can be repeated, and swaps after `refit_requests`/10 more completions, as if fitting had taken
        that long; "background" fits on a thread of its own and swaps when it is done.
    Reads: tenant, session, prompt and cached prompt tokens, the client's bound, output lengths of completed requests
        and of each session's earlier turns.
    Wins when: what can be seen of a request tells its length through combinations that a histogram keeps apart.
    Loses when: completions are few, traffic changes faster than it is refitted, or a prediction must cost less than the
        millisecond that six models take.
    """

    def __init__(
        self,
        *,
        window_requests: int = 4_000,
        refit_requests: int = 1_000,
        trees: int = 80,
        training: Literal["inline", "background"] = "inline",
    ) -> None:
        for name, value in (("window_requests", window_requests), ("refit_requests", refit_requests), ("trees", trees)):
            if value < 10:
                raise ValueError(f"{name} must be at least 10, got {value}")
        fit = _fitter(trees)
        self._fit_later: Callable[[_Rows], Future[_Models]]
        if training == "background":
            self._fit_later = lambda rows: _background().submit(fit, rows)
            self._ripens_after = 0
        else:
            self._fit_later = lambda rows: _done(fit(rows))
            self._ripens_after = refit_requests // 10
        self._refit_requests = refit_requests
        self._rows: deque[tuple[tuple[float, ...], float]] = deque(maxlen=window_requests)
        self._features = _Features()
        self._at_entry: dict[RequestId, tuple[float, ...]] = {}
        self._until_known = Histogram()
        self._models: _Models | None = None
        self._fitting: Future[_Models] | None = None
        self._completions = 0
        self._ripe_at = 0

    @property
    def is_fitted(self) -> bool:
        """Whether the trees answer yet."""
        return self._models is not None

    def predict(self, request: RequestView) -> LengthEstimate:
        """Six quantiles, even between them; past the last, even up to twice its length."""
        if self._models is None:
            return self._until_known.predict(request)
        row = np.array([self._features.of(request)])
        logarithms = sorted(float(model.predict(row, num_threads=1)[0]) for model in self._models.boosters)
        edges, survival = [0], [1.0]
        for level, logarithm in zip(LEVELS, logarithms, strict=True):
            edge = max(edges[-1] + 1, round(math.exp(min(logarithm, _LONGEST_LOGARITHM))))
            edges.append(edge)
            survival.append(1.0 - level)
        return PiecewiseEstimate(edges, survival, "quantile-boosting", request.max_output_tokens)

    def observe(self, event: Event) -> None:
        """Learn from a completion; start a fit when one is due; take over one that is ready."""
        self._until_known.observe(event)
        if isinstance(event, Arrived):
            self._at_entry[event.request.id] = self._features.of(event.request)
        elif isinstance(event, Cancelled):
            self._at_entry.pop(event.request.id, None)
        elif isinstance(event, Completed):
            seen = self._at_entry.pop(event.request.id, None)
            if seen is not None and event.output_tokens >= 1:
                self._rows.append((seen, math.log(event.output_tokens)))
                self._completions += 1
            self._features.learn(event.request, event.output_tokens)
            self._refit()

    def _refit(self) -> None:
        if self._fitting is not None:
            if self._completions >= self._ripe_at and self._fitting.done():
                self._models, self._fitting = self._fitting.result(), None
        elif self._completions and self._completions % self._refit_requests == 0:
            inputs, targets = zip(*self._rows, strict=True)
            self._fitting = self._fit_later(_Rows(np.array(inputs), np.array(targets)))
            self._ripe_at = self._completions + self._ripens_after


class _Rows(NamedTuple):
    inputs: Floats
    targets: Floats  # logarithms of lengths


class _Models(NamedTuple):
    boosters: tuple[Any, ...]  # one a level


class _Features:
    """What can be seen of a request, as numbers; unknown is NaN."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, float] = OrderedDict()  # its number, the least recently seen first
        self._sessions: OrderedDict[tuple[str, str], tuple[int, float, float]] = OrderedDict()  # turns, sum, last

    def of(self, request: RequestView) -> tuple[float, ...]:
        """In the order of `FEATURES`."""
        session = None if request.session is None else self._sessions.get((request.tenant, request.session))
        turns, total, last = session or (0, math.nan, math.nan)
        bound = request.max_output_tokens
        return (
            math.log(request.prompt_tokens),
            request.cached_prompt_tokens / request.prompt_tokens,
            math.nan if bound is None else math.log(bound),
            self._number(request.tenant),
            float(turns),
            total / turns if turns else math.nan,
            last,
        )

    def _number(self, tenant: str) -> float:
        """The tenant's; of too many, one not seen for long gives its own to a new one."""
        number = self._tenants.pop(tenant, None)
        if number is None:
            full = len(self._tenants) == _TENANTS_MAX
            number = self._tenants.popitem(last=False)[1] if full else float(len(self._tenants))
        self._tenants[tenant] = number
        return number

    def learn(self, request: RequestView, output_tokens: int) -> None:
        """A turn of a session is known now."""
        if request.session is None:
            return
        key = (request.tenant, request.session)
        turns, total, _ = self._sessions.pop(key, (0, 0.0, 0.0))
        self._sessions[key] = (turns + 1, total + output_tokens, float(output_tokens))
        if len(self._sessions) > _SESSIONS_MAX:
            self._sessions.popitem(last=False)


def _fitter(trees: int) -> Callable[[_Rows], _Models]:
    """A function that fits all levels; the same rows give the same models."""
    try:
        lightgbm = import_module("lightgbm")
    except ImportError as missing:
        raise ValueError("it needs LightGBM: pip install 'headway[ml]'") from missing

    def fit(rows: _Rows) -> _Models:
        fixed = {
            "objective": "quantile",
            "num_leaves": 15,
            "min_data_in_leaf": 20,
            "learning_rate": 0.08,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "seed": 0,
            "verbosity": -1,
        }
        boosters = []
        for level in LEVELS:
            data = lightgbm.Dataset(
                rows.inputs, rows.targets, categorical_feature=[FEATURES.index("tenant")], params={"verbosity": -1}
            )
            boosters.append(lightgbm.train({**fixed, "alpha": level}, data, num_boost_round=trees))
        return _Models(tuple(boosters))

    return fit


def _done(models: _Models) -> Future[_Models]:
    future: Future[_Models] = Future()
    future.set_result(models)
    return future


_pool: list[ThreadPoolExecutor] = []


def _background() -> ThreadPoolExecutor:
    """One thread for all predictors of the process, made when first needed."""
    if not _pool:
        _pool.append(ThreadPoolExecutor(max_workers=1, thread_name_prefix="headway-learning"))
    return _pool[0]
