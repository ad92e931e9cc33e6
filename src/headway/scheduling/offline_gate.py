"""Offline gate: how much offline work a step of an engine may do beside its online requests. Pure: facts to limits.

Law. Let T be the engine's step time. A step is *mixed* if an online request runs or waits as it is composed. Of a mixed
step, `own` is T of its online decodes alone (of one, where there is none), and `extra` what the tokens of offline
requests add to that.

1. In each mixed step the offline decodes alone add at most `share` · own, and are at most `share` of the token budget.
2. Over any run of steps the sum of `extra` is at most `share` · (the sum of `own`) + `burst_seconds`.
3. While an online prompt is computed or waits, no offline prompt is.
4. With nothing online inside, an offline prompt makes a step no longer than `burst_seconds`, unless
   16 tokens of each do.

So an online request that finds offline ones alone waits for the steps in flight, and from then on the steps that it
sees take at most (1 + share) times as long, and once `burst_seconds` more, for a T whose parts add. Not covered:
offline requests push online prefixes out of the prefix cache.

Sources: a latency budget for the offline tokens of a step, predicted by a linear step time, is HyGen's (arXiv
2501.14808, section 4); online first, with fast preemption of offline work, xLLM's (arXiv 2510.14686). The account over
time is ours: an offline prompt of 8,000 tokens costs 3 ms in any step that computes some of it, however few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from headway.domain.request import Request
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES

StepPicoseconds: TypeAlias = Callable[[int, int, int, int, int], int]
"""(decodes, their context tokens, prompts, their tokens in the step, those before it) -> picoseconds of such a step.

It need not be exact for several prompts, but never too short."""

NO_LIMIT = 1 << 60
_CHUNK_TOKENS_MIN = 16  # of each offline prompt in a step
_CHUNK_TOKENS_SEVERAL = 64  # of each of several, or one more is not let in
_PARTS = 1_000_000
_PS_PER_SECOND = 1e12


@dataclass(frozen=True, slots=True)
class OfflineRules:
    """Bounds of offline work in an engine; see the law above.

    Attributes:
        share: by how much offline requests may lengthen the steps of online ones, from 0 to 1. 0: none runs beside an
            online request.
        burst_seconds: how far a single step may go beyond that.
    """

    share: float = 0.02
    burst_seconds: float = 0.02

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"offline share must be from 0 to 1, got {self.share}")
        if not 0 < self.burst_seconds < float("inf"):
            raise ValueError(f"offline burst_seconds must be above 0, got {self.burst_seconds}")


class OfflineDecode(NamedTuple):
    """An offline request that decodes, and its KV tokens computed before the step."""

    request: Request
    context_tokens: int


class StepLoad(NamedTuple):
    """What is inside an engine as a step is composed.

    Attributes:
        online_decodes: online requests that decode.
        online_context: their KV tokens.
        is_online_prefilling: whether an online prompt is computed.
        is_online_waiting: whether an online request waits.
        offline_decodes: in order of admission.
        offline_prompts: offline requests whose prompts are computed.
        prompts_before: tokens computed before of these and cached of the offline head.
        is_offline_waiting: whether the head is offline.
        version: of the batch.
    """

    online_decodes: int
    online_context: int
    is_online_prefilling: bool
    is_online_waiting: bool
    offline_decodes: Sequence[OfflineDecode]
    offline_prompts: Sequence[Request]
    prompts_before: int
    is_offline_waiting: bool
    version: int

    @property
    def is_mixed(self) -> bool:
        """Whether anything online is inside."""
        return bool(self.online_decodes) or self.is_online_prefilling or self.is_online_waiting

    @property
    def has_offline(self) -> bool:
        """Whether anything offline is inside."""
        return bool(self.offline_decodes) or bool(self.offline_prompts) or self.is_offline_waiting


class StepPlan(NamedTuple):
    """What the step may do for offline requests.

    Attributes:
        displaced: offline requests that decode and have to go, the first to go first.
        chunk_tokens: most tokens of each offline prompt; 0 where none is computed.
    """

    displaced: Sequence[Request]
    chunk_tokens: int


class OfflineGate:
    """One per engine. Before each step `plan`; then `hold_steps` of each offline head that the engine may admit.

    `plan` must be asked before every single step while requests of both classes are inside.
    """

    def __init__(self, rules: OfflineRules, step_ps: StepPicoseconds, token_budget: int, seats: int) -> None:
        """`token_budget` and `seats` are the most tokens and requests of a step."""
        self._step_ps = step_ps
        self._share = round(rules.share * _PARTS)
        self._burst_ps = int(rules.burst_seconds * _PS_PER_SECOND)
        self._account = self._account_max = self._burst_ps * _PARTS  # in picoseconds times `_PARTS`
        self._token_budget = token_budget
        self._decodes_max = min(seats, int(rules.share * token_budget))
        self._load: StepLoad | None = None
        self._may_join = False  # as far as the prompts of the step go
        self._has_admitted = False
        self._refused_at = -1  # version of the batch at which an offline request was refused

    def plan(self, load: StepLoad) -> StepPlan:
        """What the step that is composed may do; nothing else happens to the batch but what it says."""
        self._has_admitted = self._may_join = False
        decodes = list(load.offline_decodes)
        displaced: list[Request] = []
        if load.is_mixed:
            while decodes and not self._keeps_share(load, len(decodes), _context(decodes)):
                displaced.append(decodes.pop().request)
            load = load._replace(offline_decodes=decodes)
        self._load = load
        if not load.has_offline:
            return StepPlan(displaced, 0)
        return StepPlan(displaced, self._mixed_chunk(load) if load.is_mixed else self._idle_chunk(load))

    def hold_steps(self, request: Request, version: int) -> int:
        """0 if this offline head may join the step that is composed, else for how many steps it may not.

        One in a step may. A refusal stands until the batch changes, whose `version` is given, or for one step.
        """
        load = self._load
        if self._has_admitted or load is None:
            return 1
        if self._refused_at == version:
            return UNTIL_THE_BATCH_CHANGES
        if self._may_join and self._has_room(request, load):
            return 0
        if load.is_mixed or load.offline_prompts:
            return 1  # the account fills, or the prompt goes on
        self._refused_at = version
        return UNTIL_THE_BATCH_CHANGES

    def admitted(self) -> None:
        """An offline request joins the step that is composed."""
        self._has_admitted = True

    def _has_room(self, request: Request, load: StepLoad) -> bool:
        """Whether the law's first part would hold to its expected end, were it and all others there already."""
        number = len(load.offline_decodes) + len(load.offline_prompts) + 1
        context = sum([max(one.context_tokens, _tokens_at_end(one.request)) for one in load.offline_decodes])
        context += sum([_tokens_at_end(one) for one in (*load.offline_prompts, request)])
        if load.is_mixed:
            return self._keeps_share(load, number, context)
        return number == 1 or self._step_ps(number, context, 0, 0, 0) <= self._burst_ps

    def _keeps_share(self, load: StepLoad, number: int, context: int) -> bool:
        return number <= self._decodes_max and self._left(load, number, context) >= 0

    def _left(self, load: StepLoad, number: int, context: int, chunk: int = 0) -> int:
        """What a mixed step leaves of its share, in picoseconds times `_PARTS`; negative where it takes more."""
        own = self._step_ps(max(1, load.online_decodes), load.online_context, 0, 0, 0)
        decodes, all_context = load.online_decodes + number, load.online_context + context
        both = own
        if chunk or number:
            prompts = max(1, len(load.offline_prompts)) if chunk else 0
            both = self._step_ps(max(decodes, 1), all_context, prompts, chunk, load.prompts_before if chunk else 0)
        return own * (_PARTS + self._share) - both * _PARTS

    def _mixed_chunk(self, load: StepLoad) -> int:
        """Most tokens of each offline prompt in a mixed step, which the account pays; brings the account up to date."""
        prompts, account = len(load.offline_prompts), self._account
        number, context = len(load.offline_decodes), _context(load.offline_decodes)
        left = self._left(load, number, context)
        self._account = min(self._account_max, account + left)
        waits = load.is_offline_waiting and not prompts
        if not (prompts or waits) or load.is_online_prefilling or load.is_online_waiting:
            return 0
        if 2 * account < self._account_max:
            return 0  # a chunk costs some time however short it is, so it is worth waiting for a longer one
        tokens = self._most(load, lambda chunk: account + self._left(load, number, context, chunk) >= 0)
        each = tokens // max(1, prompts)
        if each < _CHUNK_TOKENS_MIN:
            return 0
        self._may_join = waits
        self._account = min(self._account_max, account + self._left(load, number, context, each * max(1, prompts)))
        return each

    def _idle_chunk(self, load: StepLoad) -> int:
        """Most tokens of each offline prompt in a step without online requests, the head's included if it may join."""
        prompts, before = len(load.offline_prompts), load.prompts_before
        if not (prompts or load.is_offline_waiting):
            return 0
        number, context = len(load.offline_decodes), _context(load.offline_decodes)
        tokens = self._most(
            load, lambda chunk: self._step_ps(number, context, prompts + 1, chunk, before) <= self._burst_ps
        )
        least = _CHUNK_TOKENS_SEVERAL * (prompts + 1) if prompts else 0
        self._may_join = load.is_offline_waiting and tokens >= least
        return max(_CHUNK_TOKENS_MIN, tokens // (prompts + self._may_join))

    def _most(self, load: StepLoad, holds: Callable[[int], bool]) -> int:
        """The most tokens beside the decodes for which it holds; by bisection, since step times grow with tokens."""
        least, most = 0, max(0, self._token_budget - load.online_decodes - len(load.offline_decodes))
        if holds(most):
            return most
        while most - least > 1:
            middle = (least + most) // 2
            if holds(middle):
                least = middle
            else:
                most = middle
        return least


def _context(decodes: Sequence[OfflineDecode]) -> int:
    return sum([one.context_tokens for one in decodes])


def _tokens_at_end(request: Request) -> int:
    """Its KV tokens when it ends, as expected."""
    expected = 0.0 if request.estimate is None else request.estimate.remaining_mean(request.produced_tokens)
    return request.prompt_tokens + request.produced_tokens + int(expected)
