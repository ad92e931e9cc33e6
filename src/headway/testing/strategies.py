"""Hypothesis strategies: hard cases for policies and engines.

Ties, bursts, outputs of one token, prompts larger than a step's budget, memory for barely one request, preempted
requests, tenants that do not exist yet, priorities of both signs. Small numbers, so that edges touch often and
failing cases shrink to something one can read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from headway.domain.costs import ServiceCosts
from headway.domain.estimate import LengthEstimate, PointEstimate
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.domain.request import Request
from headway.policies import catalog
from headway.policies.options import constructor_keywords
from headway.scheduling.bundle import bundle
from headway.scheduling.displacement import DisplaceRules
from headway.scheduling.harm_judge import HarmLimits
from headway.scheduling.scheduler import Policies
from headway.simulator.adapter_rules import AdapterRules
from headway.simulator.rules import EngineRules, PluginRules
from headway.simulator.step_time import LinearStepTime
from headway.simulator.trace import Trace

try:
    from hypothesis import strategies as st
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "headway.testing.strategies and headway.testing.laws need hypothesis: pip install 'headway[dev]'"
    ) from missing

COSTS = ServiceCosts(prefill_seconds_per_token=1e-4, decode_seconds_per_token=0.02)
TENANTS = ("", "acme", "zeta")
ADAPTER_NAMES = ("chat", "sql", "code", "maths")
GAPS_SECONDS = (0.0, 0.0, 0.0, 0.001, 0.1, 1 / 3, 1.0, 60.0)
"""Between arrivals: mostly none, and one that no binary fraction is equal to."""


class EmpiricalEstimate:
    """A length is one of `lengths`, each as likely; past the longest, twice the length, and so on."""

    made_by = "empirical"

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = sorted(lengths)

    def remaining_mean(self, produced_tokens: int) -> float:
        """Mean of the lengths still possible, less what was produced."""
        left = self._left(produced_tokens)
        return sum(left) / len(left)

    def remaining_quantile(self, probability: float, produced_tokens: int) -> int:
        """The least of the lengths still possible that is long enough with this probability."""
        left = self._left(produced_tokens)
        return left[min(len(left) - 1, int(probability * len(left)))]

    def _left(self, produced_tokens: int) -> list[int]:
        left = [length - produced_tokens for length in self._lengths[bisect_right(self._lengths, produced_tokens) :]]
        return left or [PointEstimate(self._lengths[-1], "").remaining_quantile(0.5, produced_tokens)]

    def __repr__(self) -> str:
        return f"EmpiricalEstimate({self._lengths})"


def estimates(max_output_tokens: int = 40) -> st.SearchStrategy[LengthEstimate]:
    """Points and distributions of total output tokens."""
    lengths = st.integers(1, max_output_tokens)
    points = lengths.map(lambda tokens: PointEstimate(tokens, "drawn"))
    return points | st.lists(lengths, min_size=1, max_size=4).map(EmpiricalEstimate)


_LATER_DEADLINES = st.builds(
    LaterDeadlines,
    st.none() | st.sampled_from([0.001, 0.03, 1.0]),
    st.none() | st.sampled_from([0.0, 0.5, 2.0, 100.0]),
    st.none()
    | st.builds(
        ProgramStage,
        st.sampled_from(["p", "q"]),
        st.integers(1, 3),
        st.none() | st.integers(3, 5),
        st.none() | st.sampled_from([0.0, 1.0, 60.0]),
    ),
)


@st.composite
def requests(
    draw: st.DrawFn, *, max_prompt_tokens: int = 60, max_produced_tokens: int = 0, points_only: bool = False
) -> Request:
    """A request with an estimate on it; id 0 and arrival at 0 s, both for the caller to set."""
    prompt_tokens = draw(st.integers(1, max_prompt_tokens))
    produced_tokens = draw(st.integers(0, max_produced_tokens))
    request = Request(
        0,
        0.0,
        prompt_tokens,
        tenant=draw(st.sampled_from(TENANTS)),
        session=draw(st.none() | st.sampled_from(["s", "t"])),
        max_output_tokens=draw(st.none() | st.integers(produced_tokens + 1, produced_tokens + 50)),
        deadline=draw(st.none() | st.sampled_from([0.0, 0.5, 2.0, 100.0])),
        priority=draw(st.sampled_from([0, 0, 0, -1, 1, 7])),
        cached_prompt_tokens=draw(st.just(0) | st.integers(0, prompt_tokens)),
        produced_tokens=produced_tokens,
        adapter=draw(st.sampled_from([None, None, *ADAPTER_NAMES])),
        later_deadlines=draw(st.none() | _LATER_DEADLINES),
    )
    point = st.integers(1, 40).map(lambda tokens: PointEstimate(tokens, "drawn"))
    request.estimate = draw(point if points_only else estimates())
    return request


@st.composite
def request_lists(
    draw: st.DrawFn, *, min_size: int = 1, max_size: int = 8, max_produced_tokens: int = 0
) -> list[Request]:
    """Requests numbered from 0 in order of arrival, some arriving together."""
    body = requests(max_produced_tokens=max_produced_tokens)
    drawn = draw(st.lists(body, min_size=min_size, max_size=max_size))
    at = 0.0
    for number, request in enumerate(drawn):
        at += draw(st.sampled_from(GAPS_SECONDS))
        request.id, request.arrived_at = number, at
        if request.deadline is not None:
            request.deadline += at
        if request.later_deadlines is not None:
            request.later_deadlines = request.later_deadlines.moved(at)
    return drawn


@st.composite
def traces(
    draw: st.DrawFn,
    *,
    min_size: int = 1,
    max_size: int = 12,
    max_prompt_tokens: int = 120,
    max_output_tokens: int = 40,
    sessions: bool = True,
    prefixes: bool = True,
    adapters: bool = True,
) -> Trace:
    """A day of a few requests: every optional column is there or not, lengths go past small limits on purpose."""
    n = draw(st.integers(min_size, max_size))

    def column(values: st.SearchStrategy[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), dtype=np.int64)

    gaps = draw(st.lists(st.sampled_from(GAPS_SECONDS), min_size=n, max_size=n))
    prompt_tokens = column(st.integers(1, max_prompt_tokens) | st.just(1))
    output_tokens = column(st.integers(1, max_output_tokens) | st.just(1))
    bounds = column(st.integers(0, 10)) if draw(st.booleans()) else None
    with_sessions = sessions and draw(st.booleans())
    session = column(st.integers(-1, 2)) if with_sessions else None
    return Trace(
        name="drawn",
        arrived_seconds=np.array(list(accumulate(gaps)), dtype=np.float64),
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        # 0 says no bound; else the truth (the request ends by its bound) or more.
        max_output_tokens=None if bounds is None else np.where(bounds == 0, 0, output_tokens + bounds - 1),
        tenant=column(st.integers(0, 2)) if draw(st.booleans()) else None,
        tenants=TENANTS,
        session=session,
        turn=None if session is None else _turns(session),
        think_seconds=None if session is None else _thinks(draw, session),
        prefix_ids=_prefixes(draw, prompt_tokens.tolist()) if prefixes and draw(st.booleans()) else None,
        prefix_block_tokens=_PREFIX_BLOCK,
        priority=column(st.sampled_from([0, 0, -1, 3])) if draw(st.booleans()) else None,
        adapter=column(st.integers(-1, 3)) if adapters and draw(st.booleans()) else None,
        adapters=ADAPTER_NAMES,
        **(_drawn_deadlines(draw, n) if draw(st.booleans()) else {}),
    )


@st.composite
def engine_rules(
    draw: st.DrawFn, *, asynchronous: bool | None = None, prefix_caching: bool | None = None
) -> EngineRules:
    """Tiny limits: memory that barely holds one request of `traces`, budgets below one prompt, a seat or a few."""
    seats = draw(st.integers(1, 6))
    chunked = draw(st.booleans())
    context = draw(st.sampled_from([100, 170, 100_000] if chunked else [100, 170]))
    threshold = draw(st.sampled_from([0, 0, 7])) if chunked else 0
    return EngineRules(
        kv_blocks=draw(st.integers(8, 60)),
        block_tokens=draw(st.sampled_from([1, 2, 16])),
        max_model_tokens=context,
        max_num_seqs=seats,
        max_num_batched_tokens=(seats if chunked else max(seats, context)) + draw(st.integers(0, 50)),
        chunked_prefill=chunked,
        long_prefill_token_threshold=threshold,
        long_prefill_token_threshold_adaptive=threshold > 0 and draw(st.booleans()),
        reserve_full_prompt=draw(st.booleans()),
        watermark=draw(st.sampled_from([0.0, 0.0, 0.1])),
        async_scheduling=draw(st.booleans()) if asynchronous is None else asynchronous,
        prefix_caching=draw(st.booleans()) if prefix_caching is None else prefix_caching,
        resumed=draw(st.sampled_from(["front", "by-rank"])),
        adapters=draw(st.none() | adapter_rules()),
    )


def adapter_rules() -> st.SearchStrategy[AdapterRules]:
    """A place or a few for the adapters of `traces`, which take a few blocks and some time to load."""
    return st.builds(
        AdapterRules,
        resident_max=st.integers(1, 3),
        blocks=st.integers(0, 5),
        load_ps=st.sampled_from([0, 10**9, 333_333_333_333]),
        paging=st.sampled_from(["slots", "unified"]),
        names=st.none() | st.just(frozenset(ADAPTER_NAMES[:3])),
    )


def plugin_rules() -> st.SearchStrategy[PluginRules]:
    """Everything off, or limits that move, a guard that suspends at once and for a moment, or displacement.

    "prefill-budget" needs chunked prefill, and displacement the admission policy greedy.
    """
    quick = [HarmLimits(1.0, 0.0, seconds, for_seconds) for seconds in (0.0, 1.0) for for_seconds in (0.0, 0.5, 3.0)]
    return st.builds(
        PluginRules,
        tuning=st.sampled_from(["off", "self-tuned", "prefill-budget"]),
        guard=st.none() | st.sampled_from(quick),
        displace=st.none() | st.builds(DisplaceRules, st.integers(1, 3), st.sampled_from([0.0, 0.5])),
        tpot_seconds=st.sampled_from([1e-9, 0.01, 0.4, 2.0]),
    )


def step_times() -> st.SearchStrategy[LinearStepTime]:
    """Linear step times from instantaneous-looking to slower than the arrivals of `traces`."""
    return st.builds(
        LinearStepTime,
        fixed_ps=st.sampled_from([1, 10**9, 5 * 10**9, 333_333_333_333]),
        ps_per_token=st.sampled_from([0, 10**6, 10**9]),
        ps_per_context_token=st.sampled_from([0, 1, 10**5]),
        ps_per_request=st.sampled_from([0, 10**7]),
    )


class PolicyNames(NamedTuple):
    """Four names of the catalogue."""

    ordering: str
    admission: str
    preemption: str
    prediction: str

    def make(self, trace: Trace) -> Policies:
        """Fresh policies for one run; oracles see the trace's true lengths."""
        lengths = dict(enumerate(trace.output_tokens.tolist()))
        return bundle(**self._asdict(), costs=COSTS, seed=0, truth=lambda request_id: lengths[int(request_id)])


def bundles(**fixed: str) -> st.SearchStrategy[PolicyNames]:
    """Any four policies that the catalogue lists, one ordering inside another where it takes one; `fixed` by kind."""
    named = {kind: st.just(fixed[kind]) if kind in fixed else _names(kind) for kind in catalog.KINDS}
    return st.builds(PolicyNames, **named)


def _names(kind: catalog.Kind) -> st.SearchStrategy[str]:
    names = st.sampled_from(catalog.names(kind))
    nesting = [n for n, policy in catalog.ROOMS[kind].items() if "inner" in constructor_keywords(policy)]
    if not nesting:
        return names
    flat = [name for name in catalog.names(kind) if name not in nesting]
    return names | st.builds("{}/{}".format, st.sampled_from(nesting), st.sampled_from(flat))


_PREFIX_BLOCK = 16


def _drawn_deadlines(draw: st.DrawFn, count: int) -> dict[str, Any]:
    """Deadlines of each kind and programs, some of them missing."""

    def seconds(*choices: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        drawn = draw(st.lists(st.sampled_from([np.nan, *choices]), min_size=count, max_size=count))
        return np.array(drawn, dtype=np.float64)

    def numbers(least: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(draw(st.lists(st.integers(least, most), min_size=count, max_size=count)), dtype=np.int64)

    program, stage = numbers(-1, 2), numbers(1, 3)
    return {
        "deadline_seconds": seconds(0.0, 0.1, 5.0),
        "tpot_deadline_seconds": seconds(0.001, 0.05),
        "end_deadline_seconds": seconds(0.1, 30.0),
        "program": program,
        "stage": np.where(program >= 0, stage, 0),
        "stages": np.where(program >= 0, numbers(0, 1) * 4, 0),
        "program_deadline_seconds": seconds(1.0, 100.0),
    }


def _turns(session: np.ndarray[tuple[int], np.dtype[np.int64]]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    seen: dict[int, int] = {}
    turns = []
    for number in session.tolist():
        turns.append(seen.get(number, 0) if number >= 0 else 0)
        seen[number] = seen.get(number, 0) + 1
    return np.array(turns, dtype=np.int64)


def _thinks(
    draw: st.DrawFn, session: np.ndarray[tuple[int], np.dtype[np.int64]]
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    turns = _turns(session).tolist()
    return np.array([draw(st.sampled_from(GAPS_SECONDS)) if turn else 0.0 for turn in turns], dtype=np.float64)


def _prefixes(draw: st.DrawFn, prompt_tokens: list[int]) -> list[list[int]]:
    """Each prompt follows one of two documents for some of its blocks and then goes its own way."""
    prefixes = []
    for row, tokens in enumerate(prompt_tokens):
        blocks = -(-tokens // _PREFIX_BLOCK)
        document = draw(st.sampled_from([1_000, 2_000]))
        shared = draw(st.integers(0, blocks))
        own = [10_000 + 100 * row + number for number in range(shared, blocks)]
        prefixes.append([document + number for number in range(shared)] + own)
    return prefixes
