"""Looking: which bundle would have served the latest requests best, in a simulator that is calibrated by them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.bench.experiment.bundles import Bundle
from headway.bench.experiment.fleets import Fleet, equal_replicas, simulate_routing
from headway.bench.experiment.simulated_runs import simulate_bundle
from headway.bench.metrics.run_metrics import Slo
from headway.bench.recommendation.candidates import candidates, variants
from headway.bench.recommendation.objective import Floats, OperatorObjective, RequestTimes, measured
from headway.bench.recommendation.paired_bootstrap import drawn_gains
from headway.bench.recommendation.verdict import served
from headway.bench.twin.quick_fit import quick_fit
from headway.bench.twin.window_trace import ReplayedWindow, engine_recording, window_of
from headway.config.wanted_objective import MEASURES
from headway.simulator.calibration import Calibration, calibrated_replica
from headway.simulator.replica import Replica
from headway.simulator.rules import EngineRules
from headway.simulator.step_time import LinearStepTime
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, Judged, LookAnswer, Since, TwinLook
from headway.twin.order_prior import SPREAD, UNBOUNDED, expected_distance
from headway.twin.switch_rules import FELT_SECONDS, SINCE_MIN

FITTED_MAX = 600
"""Requests that the step time is fitted to; each replay of them takes some 30 ms."""
_KV_TOKENS = 400_000  # where no engine says: an 8B model on a GPU of 80 GB
_SCALE_STEP, _SCALES_TRIED, _CLOSE = 0.05, 9, 0.07  # of the logarithm of the scale; of that of the mean TTFT
_DRAWS = 200
_HOPELESS = SPREAD  # ln of the factor by which an order is expected to be behind the best; it is not replayed
_SAME = 0.01  # relative; below this nothing is to be chosen
_BLOCK_TOKENS = 16
_EXTREMES = ("fcfs", "shortest-uncached-prefill-first")


class _Replayed(NamedTuple):
    """A bundle and what became of each request under it."""

    bundle: Bundle
    times: RequestTimes


def answer_of(look: TwinLook, cpu_seconds: Callable[[], float]) -> LookAnswer:
    """Fit, replay, compare.

    Raises:
        ValueError: nothing was measured that the engine's speed could be taken from.
    """
    rules = engine_rules(look.engine, look.columns["prompt_tokens"])
    fitted = _fitted(look, rules)
    window, objective = window_of(look), _objective(look)
    fitted, fidelity = _waiting_as_measured(window, rules, fitted)
    replica = _replica(fitted, rules)
    found = _competitors(window, replica, objective)
    scores = _scores(objective, found)
    gains, shares = _gains(objective, window, found)
    coefficients = (fitted.fixed_ps, fitted.ps_per_token, fitted.ps_per_context_token)
    return LookAnswer(
        requests=len(window.ttft_seconds),
        measured=int(np.isfinite(window.ttft_seconds).sum()),
        fidelity=fidelity,
        judged=[
            _judged(one, float(np.exp(score)), float(np.exp(gain)), bool(share >= look.sure))
            for one, score, gain, share in zip(found, scores, gains, shares, strict=True)
        ],
        since=_since(window, replica, found),
        step_time=(*coefficients, fitted.ps_per_request, fitted.ps_per_pair),
        cpu_seconds=cpu_seconds(),
        changed_at=window.changed_at,
    )


def _fitted(look: TwinLook, rules: EngineRules) -> LinearStepTime:
    """The engine's step times. Between two looks at the whole grid those of the last fit hold."""
    recording = None if look.only and look.step_time else engine_recording(look, FITTED_MAX)
    if recording is not None:
        return quick_fit(recording, rules, look.step_time)
    if not look.step_time:
        raise ValueError("no request has both its times measured yet")
    return LinearStepTime(*look.step_time)


def _objective(look: TwinLook) -> OperatorObjective:
    wanted = look.objective
    return OperatorObjective(wanted.name, wanted.weights, Slo.of(look.slo), wanted.bounds)


def engine_rules(engine: EngineFacts, prompts: Sequence[int]) -> EngineRules:
    """The limits of one engine, as far as they are known."""
    tokens = max(engine.kv_tokens or _KV_TOKENS, 2 * max(prompts, default=1), _BLOCK_TOKENS)
    seats = max(1, engine.seats)
    return EngineRules(
        kv_blocks=tokens // _BLOCK_TOKENS,
        max_model_tokens=1 << 20,
        max_num_batched_tokens=max(engine.batched_tokens, seats),
        max_num_seqs=seats,
        prefix_caching=engine.prefix_caching,
    )


def _competitors(window: ReplayedWindow, replica: Replica, objective: OperatorObjective) -> list[_Replayed]:
    """The bundle that rules, then the others; this one alone where even the extreme orders make no difference."""
    look = window.look
    current, default = _bundle(look.current), _bundle(look.default)
    every = candidates(replace(default, label="", ordering="fcfs"))
    if look.only:
        fcfs = every[:1] if objective.bounds else []
        return _replayed_all(window, replica, [current, default, *map(_bundle, look.only), *fcfs])
    found = _replayed_all(window, replica, [current, *[one for one in every if one.ordering in _EXTREMES]])
    if _make_no_difference(found):
        return found[:1]
    found = [found[0], *(one for one in found[1:] if _may_compete(objective, one.bundle))]
    found = _replayed_all(window, replica, [default, *_plausible(objective, every)], found)
    gains, _ = _gains(objective, window, found)
    best = found[int(gains.argmax())].bundle
    more = [
        one
        for one in variants(best)
        if (look.engine.chooses_victims or one.preemption == best.preemption)
        and (look.engine.replicas == 1 or one.admission == "greedy")
    ]
    return _replayed_all(window, replica, more, found)


def _replayed_all(
    window: ReplayedWindow, replica: Replica, bundles: Sequence[Bundle], before: Sequence[_Replayed] = ()
) -> list[_Replayed]:
    """`before`, and each of these bundles that is not among them, once."""
    found = [*before]
    for one in bundles:
        if not any(_same(one, other.bundle) for other in found):
            found.append(_replayed(window, replica, one))
    return found


def _replayed(window: ReplayedWindow, replica: Replica, bundle: Bundle) -> _Replayed:
    trace, look = window.trace, window.look
    if look.engine.replicas == 1:
        every = served(trace, simulate_bundle(trace, replica, bundle, look.seed))
    else:
        fleet = Fleet(equal_replicas(replica, look.engine.replicas))
        every = served(trace, simulate_routing(trace, fleet, "least-work", bundle, look.seed).day)
    counted = [getattr(every, one.name)[window.filling :] for one in fields(RequestTimes)]
    return _Replayed(bundle, RequestTimes(*counted))


def _make_no_difference(found: Sequence[_Replayed]) -> bool:
    means = [float(one.times.ttft_seconds.mean()) for one in found]
    tails = [float(np.percentile(one.times.ttft_seconds, 99)) for one in found]
    return all(max(values) - min(values) <= _SAME * max(values) for values in (means, tails))


def _scores(objective: OperatorObjective, found: Sequence[_Replayed]) -> npt.NDArray[np.float64]:
    return np.asarray(objective.scores(_columns(objective, found)))


def _columns(objective: OperatorObjective, found: Sequence[_Replayed]) -> dict[str, npt.NDArray[np.float64]]:
    each = [objective.columns(one.times) for one in found]
    return {name: np.array([columns[name] for columns in each]) for name in MEASURES}


def _may_compete(objective: OperatorObjective, bundle: Bundle) -> bool:
    """Whether a wait has a bound under it, where a tail is wanted; as in `headway recommend`."""
    return not (objective.rests_on_the_tail and bundle.ordering in UNBOUNDED)


def _plausible(objective: OperatorObjective, every: Sequence[Bundle]) -> list[Bundle]:
    """Those that may be best: an order that is expected far behind is not worth a replay."""
    allowed = [one for one in every if _may_compete(objective, one)]
    distances = [_expected(objective, one) for one in allowed]
    return [
        one
        for one, distance in zip(allowed, distances, strict=True)
        if distance <= min(distances, default=0.0) + _HOPELESS
    ]


def _expected(objective: OperatorObjective, bundle: Bundle) -> float:
    return expected_distance(_chosen(bundle), objective.weights)


def _gains(objective: OperatorObjective, window: ReplayedWindow, found: Sequence[_Replayed]) -> tuple[Floats, Floats]:
    """Of each bundle: ln of the factor by which it is expected to be better than the first, and its share of draws.

    The mean of a normal posterior: what is known from other traffic (`order_prior`) is the prior, what it did in this
    window is one observation, and the spread of a paired bootstrap its error. A switch that turns out wrong is taken
    back by a later look, so the expectation decides, and not how sure it is. Another admission, victim or predictor has
    to be surely better besides: nothing is known of it from other traffic.
    """
    scores = _scores(objective, found)
    arrived = window.trace.arrived_seconds[window.filling :]
    longest = max(float(one.times.ttft_seconds.max()) for one in found)
    draws = drawn_gains(objective, _columns(objective, found), arrived, longest, window.look.seed, _DRAWS)
    prior = np.array([_expected(objective, one.bundle) for one in found])
    noise = draws.var(axis=0)
    drawn_to = noise / (noise + SPREAD**2)
    gains = (1 - drawn_to) * (scores[0] - scores) + drawn_to * (prior[0] - prior)
    shares = (draws > 0).mean(axis=0)
    other = np.array([not _has_the_same_others(one.bundle, found[0].bundle) for one in found])
    gains = np.where(other & (shares < window.look.sure), np.minimum(gains, 0.0), gains)
    return _within_bounds(objective, found, gains), shares


def _has_the_same_others(one: Bundle, other: Bundle) -> bool:
    mine, theirs = ((bundle.admission, bundle.preemption, bundle.prediction) for bundle in (one, other))
    return mine == theirs


def _within_bounds(objective: OperatorObjective, found: Sequence[_Replayed], gains: Floats) -> Floats:
    """Bounds before weights: what breaks one is not wanted; what keeps all is better than a first one that does not.

    By how much is then the factor by which the first one breaks its bounds. Where none keeps them, weights decide.
    """
    fcfs = next((number for number, one in enumerate(found) if one.bundle.ordering == "fcfs"), None)
    if not objective.bounds or fcfs is None:
        return gains
    columns = _columns(objective, found)
    breaks = np.ones(len(found))
    for name, bound in objective.bounds.items():
        values = measured(name, columns[name])
        breaks = np.maximum(breaks, values / max(bound.limit(float(values[fcfs])), 1e-9))
    keeps = breaks <= 1
    if not keeps.any():
        return gains
    if not keeps[0]:
        gains = np.where(keeps, np.maximum(gains, np.log(breaks[0])), gains)
    return np.where(keeps | (np.arange(len(found)) == 0), gains, -np.inf)


def _waiting_as_measured(
    window: ReplayedWindow, rules: EngineRules, fitted: LinearStepTime
) -> tuple[LinearStepTime, float | None]:
    """The step times scaled so that requests wait as long as they did, and simulated over measured mean TTFT then.

    Near saturation a step time that is wrong by a twentieth makes a queue ten times as long. The scale is searched by
    steps and then by halves: a slower engine has its requests wait longer.
    """
    look, ttft = window.look, window.ttft_seconds
    bundle, rows = _bundle(look.current), window.is_after_switch & np.isfinite(ttft)
    if look.before is not None and rows.sum() < SINCE_MIN:
        bundle, rows = _bundle(look.before), ~window.is_after_switch & np.isfinite(ttft)
    if rows.sum() < SINCE_MIN or float(ttft[rows].mean()) < FELT_SECONDS:
        return fitted, None
    measured = float(ttft[rows].mean())

    def error(place: float) -> float:
        replayed = _replayed(window, _replica(_scaled(fitted, place), rules), bundle)
        return float(np.log(_as_of_now(window, replayed)[rows].mean() / measured))

    low, high = -np.inf, np.inf  # logarithms of scales that are too small, and too large
    place, best, step = 0.0, (np.inf, 0.0, 0.0), _SCALE_STEP
    for _ in range(_SCALES_TRIED):
        off = error(place)
        best = min(best, (abs(off), off, place))
        if abs(off) < _CLOSE:
            break
        low, high = (low, place) if off > 0 else (place, high)
        if np.isfinite(low) and np.isfinite(high):
            place = (low + high) / 2
        else:
            place += -step if off > 0 else step
            step *= 2
    _, off, place = best
    return _scaled(fitted, place), float(np.exp(off))


def _scaled(fitted: LinearStepTime, place: float) -> LinearStepTime:
    """All coefficients times e^place."""
    scale = float(np.exp(place))
    return LinearStepTime(*(max(1, round(getattr(fitted, one.name) * scale)) for one in fields(LinearStepTime)))


def _replica(fitted: LinearStepTime, rules: EngineRules) -> Replica:
    return calibrated_replica(Calibration("the engine", "the latest requests", "", "", fitted, rules))


def _as_of_now(window: ReplayedWindow, replayed: _Replayed) -> npt.NDArray[np.float64]:
    """Simulated TTFT as it could have been measured by now, so that both sides know the same of those that wait."""
    return np.minimum(replayed.times.ttft_seconds, window.horizon_seconds)


def _since(window: ReplayedWindow, replica: Replica, found: Sequence[_Replayed]) -> Since | None:
    """Measured since the switch over what the bundle before would have made of the same requests."""
    look, ttft = window.look, window.ttft_seconds
    rows = np.isfinite(ttft) & window.is_after_switch
    if look.before is None or rows.sum() < 2 or float(ttft[rows].mean()) < FELT_SECONDS:
        return None
    before = _bundle(look.before)
    replayed = next((one for one in found if _same(one.bundle, before)), None)
    simulated = _as_of_now(window, replayed or _replayed(window, replica, before))[rows]
    mean = float(ttft[rows].mean() / max(float(simulated.mean()), 1e-9))
    p99 = float(np.percentile(ttft[rows], 99) / max(float(np.percentile(simulated, 99)), 1e-9))
    return Since(int(rows.sum()), mean, p99)


def _bundle(chosen: ChosenBundle) -> Bundle:
    return Bundle(
        chosen.label, chosen.ordering, chosen.admission, chosen.preemption, chosen.prediction, options=chosen.options
    )


def _chosen(bundle: Bundle) -> ChosenBundle:
    options = {kind: dict(given) for kind, given in bundle.options.items() if given}
    return ChosenBundle(bundle.ordering, bundle.admission, bundle.preemption, bundle.prediction, options)


def _same(one: Bundle, other: Bundle) -> bool:
    return _chosen(one) == _chosen(other)


def _judged(one: _Replayed, behind: float, expected: float, is_surely_better: bool) -> Judged:
    ttft = one.times.ttft_seconds
    mean, p99 = float(ttft.mean()), float(np.percentile(ttft, 99))
    return Judged(_chosen(one.bundle), mean, p99, behind, expected, is_surely_better)
