"""Requests: the read-only view that every policy gets, and the mutable form that the scheduler keeps.

The true output length is not here and cannot be reached from here: it lives in the simulator's oracle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias

from headway.domain.estimate import LengthEstimate
from headway.domain.later_deadlines import LaterDeadlines

RequestId: TypeAlias = int | str
RequestClass: TypeAlias = Literal["online", "offline"]
"""Offline requests run in what online ones leave, and are the first to give way."""


class RequestView(Protocol):
    """Read-only view of one request, as every policy sees it. Times are seconds on the shell's clock."""

    @property
    def id(self) -> RequestId:
        """Unique within one scheduler."""

    @property
    def tenant(self) -> str:
        """The tenant that pays for it; the empty string where unknown."""

    @property
    def session(self) -> str | None:
        """Conversation or agent run it belongs to."""

    @property
    def adapter(self) -> str | None:
        """Name of the LoRA adapter that it wants; None for the base model, and where unknown."""

    @property
    def arrived_at(self) -> float:
        """When it came in, seconds."""

    @property
    def prompt_tokens(self) -> int:
        """Length of the whole prompt, cached or not."""

    @property
    def cached_prompt_tokens(self) -> int:
        """Prompt tokens the prefix cache held when the request entered the queue; 0 where unknown. It may age."""

    @property
    def prefix_hashes(self) -> Sequence[int]:
        """Hashes of ever longer prefixes of its prompt, the shortest first: equal ones are of equal prefixes.

        Empty where unknown. What a hash covers differs from place to place: a KV block more, or some bytes more.
        """

    @property
    def produced_tokens(self) -> int:
        """Output tokens so far; above 0 for a waiting request only if it was preempted."""

    @property
    def sequences(self) -> int:
        """Answers that are generated for it at once (`n` times its prompts); lengths are those of one of them."""

    @property
    def max_output_tokens(self) -> int | None:
        """The client's own bound (`max_tokens`), if it gave one."""

    @property
    def deadline(self) -> float | None:
        """Time by which the first token is wanted, seconds on the same clock as `arrived_at`."""

    @property
    def later_deadlines(self) -> LaterDeadlines | None:
        """What its client wants after the first token, and its program; None where it names nothing, as mostly."""

    @property
    def priority(self) -> int:
        """vLLM's sign: lower runs sooner, 0 is normal."""

    @property
    def is_offline(self) -> bool:
        """Whether its class is offline: it runs in what online requests leave, and gives way to them first."""

    @property
    def estimate(self) -> LengthEstimate | None:
        """What the predictor stamped on it at entry; None before that."""


NEVER_LOOKED_UP = -math.inf


class Request:
    """A request as the scheduler keeps it; satisfies `RequestView`.

    `produced_tokens`, `cached_prompt_tokens` and, before it enters, `prefix_hashes` are written by the shell that owns
    the request, `estimate` by the scheduler at entry; policies only read. `looked_up_at` is when the shell last asked
    its prefix cache, in seconds. `replica_id` names the replica of a simulated fleet that it was sent to last, for
    listeners; None elsewhere.
    """

    __slots__ = (
        "adapter",
        "arrived_at",
        "cached_prompt_tokens",
        "deadline",
        "estimate",
        "id",
        "is_offline",
        "later_deadlines",
        "looked_up_at",
        "max_output_tokens",
        "prefix_hashes",
        "priority",
        "produced_tokens",
        "prompt_tokens",
        "replica_id",
        "sequences",
        "session",
        "tenant",
    )

    def __init__(
        self,
        id: RequestId,
        arrived_at: float,
        prompt_tokens: int,
        *,
        tenant: str = "",
        session: str | None = None,
        max_output_tokens: int | None = None,
        deadline: float | None = None,
        priority: int = 0,
        cached_prompt_tokens: int = 0,
        produced_tokens: int = 0,
        sequences: int = 1,
        adapter: str | None = None,
        is_offline: bool = False,
        later_deadlines: LaterDeadlines | None = None,
    ) -> None:
        self.id = id
        self.arrived_at = arrived_at
        self.prompt_tokens = prompt_tokens
        self.tenant = tenant
        self.session = session
        self.adapter = adapter
        self.max_output_tokens = max_output_tokens
        self.deadline = deadline
        self.later_deadlines = later_deadlines
        self.priority = priority
        self.cached_prompt_tokens = cached_prompt_tokens
        self.produced_tokens = produced_tokens
        self.sequences = sequences
        self.is_offline = is_offline
        self.prefix_hashes: Sequence[int] = ()
        self.replica_id: str | None = None
        self.estimate: LengthEstimate | None = None
        self.looked_up_at = NEVER_LOOKED_UP

    def __repr__(self) -> str:
        return f"Request({self.id!r}, arrived_at={self.arrived_at:.6f}, prompt_tokens={self.prompt_tokens})"


def uncached_prefill_tokens(request: RequestView) -> int:
    """Tokens the engine must compute before the request's next output token.

    Prompt and, for a preempted request, what it had produced (recompute), less what the prefix cache held.
    """
    return max(0, request.prompt_tokens + request.produced_tokens - request.cached_prompt_tokens)


def expected_output_tokens(request: RequestView) -> float:
    """Output tokens still expected, from the estimate stamped at entry.

    Raises:
        ValueError: no estimate was stamped, that is, the scheduler has no predictor.
    """
    if request.estimate is None:
        raise ValueError(f"request {request.id!r} has no length estimate: name a predictor, for example running-mean")
    return request.estimate.remaining_mean(request.produced_tokens)
