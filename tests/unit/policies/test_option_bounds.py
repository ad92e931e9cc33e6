"""Every numeric option at its bounds: the last value that is taken, the first that is not, and the default."""

from __future__ import annotations

import math

import pytest

from headway.domain.costs import ServiceCosts
from headway.policies import catalog
from headway.policies.contracts import OrderingPolicy, follows_what_is_learned
from headway.policies.options import constructor_keywords
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.policies.tunable import Tunable

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.02)
INF, NAN = math.inf, math.nan

# kind, policy, option, default, values that are taken, values that are not
OPTIONS: list[tuple[catalog.Kind, str, str, object, list[float], list[float]]] = [
    ("ordering", "smallest-volume-first-1bit", "threshold_tokens", 256.0, [1e-9, 1e9], [0.0, -1.0, INF]),
    ("ordering", "smallest-volume-first-1bit", "short_tokens", 16.0, [1e-9, 4_095.0], [0.0, 4_096.0, INF]),
    ("ordering", "smallest-volume-first-1bit", "long_tokens", 4_096.0, [16.5, 1e9], [16.0, INF]),
    ("ordering", "priced-work", "patience", 2.0, [1.0, 50.0], [0.99, 50.1, NAN]),
    ("ordering", "boost", "decay_factor", 1.0, [1e-3, 1e3], [0.0, INF, NAN]),
    ("ordering", "gittins", "tail_weight", 0.0, [0.0, 9.0], [-0.1, INF, NAN]),
    ("ordering", "deadline-plus-work", "work_weight", 1.0, [-1.0, 1e6], [-1.1, INF, NAN]),
    ("ordering", "deadline-plus-work", "no_deadline_seconds", 30.0, [0.0, 1e6], [-0.1, INF]),
    ("ordering", "qoserve", "work_weight", 1.0, [-1.0, 1e6], [-1.1, INF, NAN]),
    ("ordering", "qoserve", "no_deadline_seconds", 30.0, [0.0, 1e6], [-0.1, INF]),
    ("ordering", "qoserve", "lane_seconds", 1.0, [1e-6, 9.0], [9e-7, INF]),
    ("ordering", "modified-due-date", "no_deadline_seconds", 30.0, [0.0, 1e9], [-0.1, 1.1e9, NAN]),
    ("ordering", "modified-due-date", "lane_seconds", 0.5, [1e-6, 9.0], [9e-7, INF, NAN]),
    ("ordering", "goodput-first", "quantile", 0.95, [0.01, 0.99], [0.0, 1.0]),
    ("ordering", "goodput-first", "guard_seconds", 0.5, [0.0, 9.0], [-0.1, INF]),
    ("ordering", "goodput-first", "lane_seconds", 0.5, [1e-6, 9.0], [9e-7, INF]),
    ("ordering", "goodput-first", "tpot_seconds", None, [0.001, 9.0], [0.0, INF]),
    ("ordering", "jitserve", "quantile", 0.95, [0.01, 0.99], [0.0, 1.0]),
    ("ordering", "jitserve", "output_weight", 8.0, [0.0, 99.0], [-0.1, INF, NAN]),
    ("ordering", "jitserve", "lateness_exponent", 1.0, [0.1, 9.0], [0.0, INF, NAN]),
    ("ordering", "jitserve", "no_deadline_seconds", 30.0, [0.1, 1e6], [0.0, INF, NAN]),
    ("ordering", "jitserve", "lane_seconds", 1.0, [0.1, 9.0], [0.0, INF]),
    ("ordering", "priority-aging", "seconds_per_class", 10.0, [0.1, 1e6], [0.0, INF]),
    ("ordering", "highest-response-ratio", "lane_width", 1.2, [1.01, 9.0], [1.0, INF]),
    ("ordering", "ewsjf-authors", "lanes", 10, [1, 30], [0]),
    ("ordering", "ewsjf-authors", "lane_tokens", 100, [1, 30], [0]),
    ("ordering", "ewsjf-authors", "step", 200, [0, 1_500], [-1]),
    ("ordering", "shortest-job-first-aging", "service_seconds_per_second_waited", 0.1, [0.001, 9.0], [0.0, INF]),
    ("ordering", "fair-share", "prompt_weight", 1.0, [0.0, 9.0], [-0.1, INF]),
    ("ordering", "weighted-fair-queue", "prompt_weight", 1.0, [0.0, 9.0], [-0.1, INF]),
    ("ordering", "weighted-fair-queue", "output_weight", 2.0, [0.0, 9.0], [-0.1, INF]),
    ("ordering", "adapter-clusters", "adapters_max", 8, [1], [0]),
    ("ordering", "adapter-clusters", "places_max", 64, [0], [-1]),
    ("ordering", "fair-share", "output_weight", 2.0, [0.0, 9.0], [-0.1, INF]),
    ("ordering", "ewsjf", "lanes_max", 30, [1, 99], [0]),
    ("ordering", "ewsjf", "significance", 5.5, [1.01, 99.0], [1.0, INF]),
    ("ordering", "ewsjf", "spread_max", 1.5, [1.01, INF], [1.0, NAN]),
    ("ordering", "ewsjf", "w_base", 1.0, [-9.0, 9.0], [NAN, INF]),
    ("ordering", "ewsjf", "b_u", 1.0, [-9.0, 9.0], [NAN, INF]),
    ("ordering", "ewsjf", "a_u", 0.0, [-9.0, 9.0], [NAN]),
    ("ordering", "ewsjf", "a_f", 0.0, [-9.0, 9.0], [NAN]),
    ("ordering", "ewsjf", "b_f", 0.0, [-9.0, 9.0], [NAN]),
    ("ordering", "ewsjf", "overdue_seconds", 60.0, [0.0, 1e6], [-0.1, INF]),
    ("ordering", "ewsjf", "overdue_share", 0.25, [0.01, 1.0], [0.0, 1.01]),
    ("ordering", "ewsjf", "window_requests", 10_000, [2], [1]),
    ("ordering", "ewsjf", "relearn_requests", 2_000, [0], [-1]),
    ("ordering", "ewsjf-published", "significance", 5.5, [1.01], [1.0]),
    ("ordering", "ewsjf-published", "b_f", 0.1, [0.0], [NAN]),
    ("ordering", "ewsjf-published", "b_u", 1.0, [0.0], [NAN]),
    ("admission", "peak-check", "reserve", 0.0, [0.0, 0.99], [-0.01, 1.0]),
    ("admission", "peak-check", "quantile", None, [0.01, 0.99], [0.0, 1.0]),
    ("admission", "past-future", "reserve", 0.05, [0.0, 0.99], [-0.01, 1.0]),
    ("admission", "past-future", "steps_between", 2, [1], [0]),
    ("admission", "past-future-common-draws", "reserve", 0.05, [0.0, 0.99], [-0.01, 1.0]),
    ("admission", "past-future-common-draws", "steps_between", 2, [1], [0]),
    ("admission", "past-future-common-draws", "draws", 5, [1], [0]),
    ("admission", "overflow-probability", "overflow_target", 0.007, [0.001, 0.999], [0.0, 1.0]),
    ("admission", "overflow-probability", "learning_rate", 0.5, [0.0, 9.0], [-0.1, INF]),
    ("admission", "overflow-probability", "z_start", 1.0, [-4.0, 8.0], [-4.1, 8.1]),
    ("admission", "overflow-probability", "steps_between", 1, [1], [0]),
    ("admission", "nested-wait", "overflow_chance", 0.01, [0.001, 0.999], [0.0, 1.0]),
    ("admission", "nested-wait", "window_requests", 1_000, [20], [19]),
    ("admission", "backfill", "skips_max", 16, [1], [0]),
    ("admission", "backfill", "look_ahead", 8, [1], [0]),
    ("admission", "backfill", "quantile", 0.9, [0.01, 0.99], [0.0, 1.0]),
    ("admission", "reserve-max", "default_tokens", 4_096, [1], [0]),
    ("prediction", "oracle-noisy", "sigma", 0.7, [0.0, 9.0], [-0.1, INF]),
    ("prediction", "past-future", "window_requests", 200, [2], [1]),
    ("prediction", "past-future", "default_max_tokens", 4_096, [1], [0]),
    ("prediction", "running-mean", "prior_tokens", 256.0, [1.0], [0.9, INF]),
    ("prediction", "running-mean", "prior_requests", 10.0, [1.0], [0.9, INF]),
    ("prediction", "running-mean", "half_life_requests", 100.0, [1.0], [0.9, INF]),
    ("prediction", "declared-max", "default_tokens", 1_024, [1], [0]),
    ("prediction", "one-bit", "window_requests", 1_000, [2], [1]),
    ("prediction", "one-bit", "parent_requests", 10.0, [1.0], [0.9, INF]),
    ("prediction", "one-bit", "prior_tokens", 256.0, [1.0], [0.9, INF]),
    ("prediction", "histogram", "parent_requests", 20.0, [1.0], [0.9, INF]),
    ("prediction", "histogram", "half_life_requests", 300.0, [1.0], [0.9, INF]),
    ("prediction", "histogram", "prior_tokens", 256.0, [1.0], [0.9, INF]),
    ("prediction", "histogram", "kinds_max", 20_000, [1], [0]),
    ("prediction", "conformal", "least_requests", 20, [2, 300], [1, 301]),
    ("prediction", "conformal", "window_requests", 300, [20], [19]),
    ("routing", "least-work", "kv_barrier_seconds", 0.15, [0.0, 9.0], [-0.1, INF]),
    ("routing", "prefix-affinity", "load_factor", 1.25, [1.0, 9.0], [0.9, INF]),
    ("routing", "prefix-affinity", "prefixes_max", 65_536, [1], [0]),
    ("routing", "session-affinity", "load_factor", 1.25, [1.0, 9.0], [0.9, INF]),
    ("routing", "cached-prefix", "load_factor", 1.25, [1.0, 9.0], [0.9, INF]),
    ("routing", "adapter-affinity", "load_factor", 1.25, [1.0, 9.0], [0.9, INF]),
    ("routing", "adapter-affinity", "replicas_per_adapter", 2, [1], [0]),
    ("rescheduling", "take-back", "period_seconds", 0.05, [0.001, 9.0], [0.0, NAN, INF]),
    ("rescheduling", "take-back", "least_gain_seconds", 0.1, [0.0, 9.0], [-0.1, NAN, INF]),
    ("rescheduling", "take-back", "moves_max", 16, [1, 99], [0, -1]),
    ("rescheduling", "migrate", "period_seconds", 0.05, [0.001, 9.0], [0.0, NAN, INF]),
    ("rescheduling", "migrate", "source_below", 48.0, [0.0, 999.0], [-0.1, NAN, INF]),
    ("rescheduling", "migrate", "priority_headroom", 0.5, [0.0, 1.0], [-0.1, 1.1, NAN]),
    ("rescheduling", "migrate", "moves_max", 16, [1, 99], [0, -1]),
    ("routing", "weighted-dispatch", "speed_weight", 0.25, [0.0, 1.0], [-0.1, 1.1, NAN]),
    ("routing", "length-split", "short_tokens", 256, [1], [0]),
    ("routing", "dual-map", "first_token_seconds", 5.0, [0.1], [0.0, INF]),
    ("routing", "fullest-that-attains", "first_token_seconds", 2.0, [0.1], [0.0, INF]),
    ("routing", "fullest-that-attains", "output_seconds", 0.1, [0.01], [0.0, INF]),
]


def built(kind: catalog.Kind, name: str, options: dict[str, object]) -> object:
    return catalog.build(kind, name, options, costs=COSTS, seed=0, truth=lambda request_id: 1)


@pytest.mark.parametrize(("kind", "name", "option", "default", "taken", "refused"), OPTIONS, ids=str)
def test_an_option_at_its_bounds(
    kind: catalog.Kind, name: str, option: str, default: object, taken: list[float], refused: list[float]
) -> None:
    policy = catalog.ROOMS[kind][name]
    assert constructor_keywords(policy)[option].default == default
    for value in taken:
        built(kind, name, {option: value})
    for value in refused:
        with pytest.raises(ValueError, match=option):
            built(kind, name, {option: value})


def test_no_numeric_option_is_left_out_here() -> None:
    listed = {(kind, name, option) for kind, name, option, *_ in OPTIONS}
    missing = []
    for kind in catalog.ALL_KINDS:
        for name, policy in catalog.ROOMS[kind].items():
            for option, parameter in constructor_keywords(policy).items():
                numeric = isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
                if numeric and (kind, name, option) not in listed and name != "ewsjf-published":
                    missing.append((kind, name, option))
    assert missing == []


def test_which_orders_follow_what_is_learned() -> None:
    following = {
        name
        for name in catalog.names("ordering")
        if follows_what_is_learned(built("ordering", name, {}))  # type: ignore[arg-type]
    }
    assert following == {
        "shortest-job-first",
        "shortest-job-first-aging",
        "priced-work",
        "boost",
        "gittins",
        "ewsjf",
        "ewsjf-published",
        "smallest-volume-first",
        "smallest-volume-first-1bit",
        "goodput-first",
        "jitserve",
        "deadline-plus-work",
        "qoserve",
        "modified-due-date",
        "prefix-groups",
    }
    inner: OrderingPolicy = SmallestVolumeFirst()
    assert follows_what_is_learned(FairShare(inner=inner))


def test_points_of_a_search_box_and_back() -> None:
    linear, log = Tunable("x", 2.0, 10.0), Tunable("x", 0.01, 100.0, "log")
    whole = Tunable("x", 1, 9, whole=True)
    assert [linear.value(share) for share in (0.0, 0.25, 1.0)] == [2.0, 4.0, 10.0]
    assert [log.value(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.01, 1.0, 100.0])
    assert whole.value(0.31) == 3
    assert isinstance(whole.value(0.31), int)
    assert [linear.share(value) for value in (1.0, 4.0, 11.0)] == [0.0, 0.25, 1.0]
    assert [log.share(value) for value in (0.001, 1.0, 1e9)] == pytest.approx([0.0, 0.5, 1.0])
    assert Tunable("x", 3.0, 3.0).share(9.0) == 0.0
    assert all(log.low <= log.value(share / 7) <= log.high for share in range(8))
