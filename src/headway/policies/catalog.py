"""The catalogue of policies: name → class, one literal line each; other packages add theirs by entry points.

To add a policy: one file in its room, one line here. Another package adds its own with an entry point in the group
`headway.ordering`, `headway.admission`, `headway.preemption`, `headway.prediction`, `headway.routing` or
`headway.rescheduling`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args, overload

from headway.config.nearest_name import nearest
from headway.domain.costs import ServiceCosts
from headway.domain.request import RequestId
from headway.policies.admission.backfill import Backfill
from headway.policies.admission.greedy import Greedy
from headway.policies.admission.nested_wait import NestedWait
from headway.policies.admission.overflow_probability import OverflowProbability
from headway.policies.admission.past_future_admission import PastFutureAdmission
from headway.policies.admission.past_future_common_draws import PastFutureCommonDraws
from headway.policies.admission.peak_check import PeakCheck
from headway.policies.admission.reserve_max import ReserveMax
from headway.policies.contracts import (
    AdmissionPolicy,
    LengthPredictor,
    OrderingPolicy,
    PreemptionPolicy,
    ReschedulingPolicy,
    RoutingPolicy,
)
from headway.policies.options import checked_options, constructor_keywords
from headway.policies.ordering.adapter_clusters import AdapterClusters
from headway.policies.ordering.boost import Boost
from headway.policies.ordering.deadline_plus_work import DeadlinePlusWork
from headway.policies.ordering.earliest_deadline_first import EarliestDeadlineFirst
from headway.policies.ordering.ewsjf import Ewsjf
from headway.policies.ordering.ewsjf_authors import EwsjfAuthors
from headway.policies.ordering.ewsjf_published import EwsjfPublished
from headway.policies.ordering.fair_share import FairShare
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.ordering.gittins import Gittins
from headway.policies.ordering.goodput_first import GoodputFirst
from headway.policies.ordering.highest_response_ratio import HighestResponseRatio
from headway.policies.ordering.jitserve import Jitserve
from headway.policies.ordering.longest_prefix_match import LongestPrefixMatch
from headway.policies.ordering.modified_due_date import ModifiedDueDate
from headway.policies.ordering.prefix_groups import PrefixGroups
from headway.policies.ordering.priced_work import PricedWork
from headway.policies.ordering.priority import Priority
from headway.policies.ordering.priority_aging import PriorityAging
from headway.policies.ordering.qoserve import Qoserve
from headway.policies.ordering.random import Random
from headway.policies.ordering.shortest_job_first import ShortestJobFirst
from headway.policies.ordering.shortest_job_first_aging import ShortestJobFirstAging
from headway.policies.ordering.shortest_prompt_first import ShortestPromptFirst
from headway.policies.ordering.shortest_uncached_prefill_first import ShortestUncachedPrefillFirst
from headway.policies.ordering.smallest_volume_first import SmallestVolumeFirst
from headway.policies.ordering.smallest_volume_first_1bit import SmallestVolumeFirst1bit
from headway.policies.ordering.weighted_fair_queue import WeightedFairQueue
from headway.policies.outside_policies import load, offered, packages, refused_construction
from headway.policies.prediction.conformal import Conformal
from headway.policies.prediction.declared_max import DeclaredMax
from headway.policies.prediction.external import External
from headway.policies.prediction.histogram import Histogram
from headway.policies.prediction.one_bit import OneBit
from headway.policies.prediction.oracle import Oracle
from headway.policies.prediction.oracle_noisy import OracleNoisy
from headway.policies.prediction.past_future_prediction import PastFuturePrediction
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.preemption.least_sunk_work import LeastSunkWork
from headway.policies.preemption.lowest_priority import LowestPriority
from headway.policies.preemption.smallest_remaining_benefit import SmallestRemainingBenefit
from headway.policies.rescheduling.migrate import Migrate
from headway.policies.rescheduling.stay import Stay
from headway.policies.rescheduling.take_back import TakeBack
from headway.policies.routing.adapter_affinity import AdapterAffinity
from headway.policies.routing.cached_prefix import CachedPrefix
from headway.policies.routing.dual_map import DualMap
from headway.policies.routing.fullest_that_attains import FullestThatAttains
from headway.policies.routing.least_work import LeastWork
from headway.policies.routing.length_split import LengthSplit
from headway.policies.routing.lmetric import Lmetric
from headway.policies.routing.power_of_two import PowerOfTwo
from headway.policies.routing.prefix_affinity import PrefixAffinity
from headway.policies.routing.round_robin import RoundRobin
from headway.policies.routing.session_affinity import SessionAffinity
from headway.policies.routing.weighted_dispatch import WeightedDispatch

Kind: TypeAlias = Literal["ordering", "admission", "preemption", "prediction", "routing", "rescheduling"]
ALL_KINDS: tuple[Kind, ...] = get_args(Kind)
KINDS: tuple[Kind, ...] = ALL_KINDS[:4]
"""The kinds that a bundle chooses; the other two are asked by the gateway and by a simulated fleet beside bundles."""

ORDERING: dict[str, type[OrderingPolicy]] = {
    "fcfs": Fcfs,
    "shortest-prompt-first": ShortestPromptFirst,
    "shortest-uncached-prefill-first": ShortestUncachedPrefillFirst,
    "shortest-job-first": ShortestJobFirst,
    "shortest-job-first-aging": ShortestJobFirstAging,
    "priced-work": PricedWork,
    "boost": Boost,
    "gittins": Gittins,
    "highest-response-ratio": HighestResponseRatio,
    "ewsjf": Ewsjf,
    "ewsjf-published": EwsjfPublished,
    "ewsjf-authors": EwsjfAuthors,
    "smallest-volume-first": SmallestVolumeFirst,
    "smallest-volume-first-1bit": SmallestVolumeFirst1bit,
    "earliest-deadline-first": EarliestDeadlineFirst,
    "goodput-first": GoodputFirst,
    "jitserve": Jitserve,
    "deadline-plus-work": DeadlinePlusWork,
    "qoserve": Qoserve,
    "modified-due-date": ModifiedDueDate,
    "fair-share": FairShare,
    "weighted-fair-queue": WeightedFairQueue,
    "adapter-clusters": AdapterClusters,
    "priority": Priority,
    "priority-aging": PriorityAging,
    "longest-prefix-match": LongestPrefixMatch,
    "prefix-groups": PrefixGroups,
    "random": Random,
}
ADMISSION: dict[str, type[AdmissionPolicy]] = {
    "greedy": Greedy,
    "peak-check": PeakCheck,
    "reserve-max": ReserveMax,
    "past-future": PastFutureAdmission,
    "past-future-common-draws": PastFutureCommonDraws,
    "overflow-probability": OverflowProbability,
    "nested-wait": NestedWait,
    "backfill": Backfill,
}
PREEMPTION: dict[str, type[PreemptionPolicy]] = {
    "latest-admitted": LatestAdmitted,
    "least-sunk-work": LeastSunkWork,
    "lowest-priority": LowestPriority,
    "smallest-remaining-benefit": SmallestRemainingBenefit,
}
PREDICTION: dict[str, type[LengthPredictor]] = {
    "running-mean": RunningMean,
    "declared-max": DeclaredMax,
    "histogram": Histogram,
    "past-future": PastFuturePrediction,
    "one-bit": OneBit,
    "conformal": Conformal,
    "external": External,
    "oracle": Oracle,
    "oracle-noisy": OracleNoisy,
}
ROUTING: dict[str, type[RoutingPolicy]] = {
    "least-work": LeastWork,
    "power-of-two": PowerOfTwo,
    "lmetric": Lmetric,
    "cached-prefix": CachedPrefix,
    "prefix-affinity": PrefixAffinity,
    "dual-map": DualMap,
    "session-affinity": SessionAffinity,
    "adapter-affinity": AdapterAffinity,
    "weighted-dispatch": WeightedDispatch,
    "length-split": LengthSplit,
    "fullest-that-attains": FullestThatAttains,
    "round-robin": RoundRobin,
}
RESCHEDULING: dict[str, type[ReschedulingPolicy]] = {"stay": Stay, "take-back": TakeBack, "migrate": Migrate}

ROOMS: dict[Kind, Mapping[str, type[Any]]] = {
    "ordering": ORDERING,
    "admission": ADMISSION,
    "preemption": PREEMPTION,
    "prediction": PREDICTION,
    "routing": ROUTING,
    "rescheduling": RESCHEDULING,
}
"""Our own policies by kind."""

ALIASES: dict[Kind, dict[str, str]] = {
    "ordering": {
        "fifo": "fcfs",
        "spf": "shortest-prompt-first",
        "sjf": "shortest-job-first",
        "hrrn": "highest-response-ratio",
        "svf": "smallest-volume-first",
        "edf": "earliest-deadline-first",
        "mdd": "modified-due-date",
        "vtc": "fair-share",
        "wfq": "weighted-fair-queue",
        "lpm": "longest-prefix-match",
    },
    "routing": {"p2c": "power-of-two", "rr": "round-robin"},
}
"""Short names known from the literature, alias → name. Output always has the name. A package's own name goes first."""

_INJECTED = ("costs", "seed", "truth", "inner")  # constructor keywords that are ours to give, not the user's


def names(kind: Kind) -> list[str]:
    """Every usable policy of a kind by name: ours in the catalogue's order, then other packages' by the alphabet."""
    return [*ROOMS[kind], *sorted(set(offered(kind)) - set(ROOMS[kind]) - set(faults(kind)))]


def faults(kind: Kind) -> dict[str, str]:
    """Policies of other packages that cannot be used: name → one sentence that says why. Imports these packages."""
    sentences: dict[str, str] = {}
    for name, entries in sorted(offered(kind).items()):
        if name in ROOMS[kind]:
            sentences[name] = f"{packages(entries)} offers a second {kind} policy named {name!r}; Headway's own is used"
            continue
        try:
            load(kind, name, entries, _INJECTED)
        except ValueError as error:
            sentences[name] = str(error)
    return sentences


def aliases(kind: Kind, name: str) -> list[str]:
    """The short names of one policy."""
    return [alias for alias, policy in ALIASES.get(kind, {}).items() if policy == name]


def canonical(kind: Kind, name: str) -> str:
    """The name, or the path of names joined by slashes, with every alias replaced; unknown names stay as they are."""
    short = ALIASES.get(kind, {})
    return "/".join(short[part] if part in short and part not in offered(kind) else part for part in name.split("/"))


def find(kind: Kind, name: str) -> type[Any]:
    """The class behind a name or an alias; no slash.

    Raises:
        ValueError: there is none, or another package's cannot be used.
    """
    ours = ROOMS[kind].get(name)
    if ours is not None:
        return ours
    entries = offered(kind).get(name)
    if entries is not None:
        return load(kind, name, entries, _INJECTED)
    if name in ALIASES.get(kind, {}):
        return ROOMS[kind][ALIASES[kind][name]]
    raise ValueError(f"unknown {kind} policy {name!r}{nearest(name, names(kind), ALIASES.get(kind, ()))}")


@overload
def build(
    kind: Literal["ordering"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> OrderingPolicy: ...
@overload
def build(
    kind: Literal["admission"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> AdmissionPolicy: ...
@overload
def build(
    kind: Literal["preemption"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> PreemptionPolicy: ...
@overload
def build(
    kind: Literal["routing"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> RoutingPolicy: ...
@overload
def build(
    kind: Literal["rescheduling"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> ReschedulingPolicy: ...
@overload
def build(
    kind: Literal["prediction"],
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> LengthPredictor: ...
def build(
    kind: Kind,
    name: str,
    options: Mapping[str, object] | None = None,
    *,
    costs: ServiceCosts,
    seed: int,
    truth: Callable[[RequestId], int] | None = None,
) -> object:
    """A fresh policy by name, with the user's options checked by name and type.

    "fair-share/smallest-volume-first" puts the second ordering inside the first; an option then belongs to the first
    policy of the path that has one of that name. Aliases are accepted. The constructor keywords `costs`, `seed`,
    `truth` and `inner` are given where a policy asks for them. `truth` tells a request's true output tokens; only a
    simulator has it.

    Raises:
        ValueError: unknown policy or option, an option of the wrong type or out of range, an oracle without truth, a
            slash where none is taken. The message is one sentence for the user.
    """
    given: dict[str, Any] = {"costs": costs, "seed": seed}
    if truth is not None:
        given["truth"] = truth
    parts = canonical(kind, name).split("/")
    if len(parts) > 1 and not all(parts):
        raise ValueError(f"the {kind} policy {name!r} lacks a name beside a slash; write OUTER/INNER, or one name")
    path = [(part, find(kind, part)) for part in parts]
    for part, policy in path[:-1]:
        if "inner" not in constructor_keywords(policy):
            nesting = [n for n, p in ROOMS[kind].items() if "inner" in constructor_keywords(p)]
            takes = f"; only {', '.join(nesting)} does" if nesting else ""
            raise ValueError(f"{part} takes no other policy inside it, so {name!r} cannot be built{takes}")
    shares = _share_out(dict(options or {}), kind, path)
    inner: object = None
    for (part, policy), share in reversed(list(zip(path, shares, strict=True))):
        inner = _construct(kind, part, policy, share, given if inner is None else {**given, "inner": inner})
    return inner


def own_options(policy: type[Any]) -> dict[str, Any]:
    """The constructor keywords that are the user's to set, name → `inspect.Parameter`."""
    return {name: p for name, p in constructor_keywords(policy).items() if name not in _INJECTED}


def _share_out(options: dict[str, object], kind: Kind, path: list[tuple[str, type[Any]]]) -> list[dict[str, object]]:
    """Each option to the first policy of the path that has it."""
    shares: list[dict[str, object]] = []
    for _, policy in path:
        own = own_options(policy)
        shares.append({name: options.pop(name) for name in list(options) if name in own})
    for name in options:
        known = [own for _, policy in path for own in own_options(policy)]
        which = "/".join(part for part, _ in path)
        if not known:
            raise ValueError(f"unknown option {name!r}: the {kind} policy {which} has no options")
        raise ValueError(f"unknown option {name!r} of the {kind} policy {which}{nearest(name, known)}")
    return shares


def _construct(
    kind: Kind, name: str, policy: type[Any], options: dict[str, object], given: Mapping[str, Any]
) -> object:
    keywords = constructor_keywords(policy)
    if "truth" in keywords and "truth" not in given:
        raise ValueError(
            f"the {name} predictor works in the simulator only, because it needs the true lengths: "
            "use running-mean or declared-max"
        )
    injected = {keyword: value for keyword, value in given.items() if keyword in keywords}
    checked = checked_options(name, policy, options)
    try:
        return policy(**injected, **checked)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except (Exception, SystemExit) as error:
        if name in ROOMS[kind]:
            raise  # a fault of ours
        raise refused_construction(kind, name, policy, error) from error
