"""Trace: one day of traffic as columns, true output lengths included; never shown to a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Trace:
    """n requests, sorted by `arrived_seconds`; every column has length n unless it is None (absent).

    Attributes:
        name: what to call it in tables.
        arrived_seconds: arrival, seconds since the trace's start, not decreasing. For a follow-up turn of a session
            (`turn` > 0 with a `session`) it is ignored in a closed-loop replay.
        prompt_tokens: whole prompt, ≥ 1.
        output_tokens: true output length, ≥ 1.
        max_output_tokens: the client's own bound, 0 where none was given. A request with
            `output_tokens == max_output_tokens` ends by its bound, any other by a stop token.
        tenant: index into `tenants`.
        tenants: names.
        session: index of the conversation or agent run, -1 where none.
        turn: index of the call within its session.
        think_seconds: client's pause between the end of the session's previous call and this one; 0 at turn 0.
        prefix_ids: per request the ids of its prompt's consecutive blocks of `prefix_block_tokens` tokens, the last
            perhaps partial; an equal id means an equal block after an equal prefix.
        prefix_block_tokens: tokens in a block of `prefix_ids`.
        deadline_seconds: wanted time to first token, relative to arrival; NaN where none.
        deadline_is_slo: whether `deadline_seconds` is a bound of the operator, as the source names no deadline.
        tpot_deadline_seconds: wanted time per output token after the first; NaN where none.
        end_deadline_seconds: wanted time to last token, relative to arrival; NaN where none.
        program: index of the program that the request is a part of, -1 where none.
        stage: which stage of its program, from 1; 0 without a program.
        stages: how many stages the program has, 0 where unknown.
        program_deadline_seconds: wanted time of the whole program, from the arrival of this request; NaN where none.
            Of a program's requests that of its first row holds, and counts from when that row was sent.
        priority: vLLM's sign, lower sooner.
        offline: whether its class is offline.
        adapter: index into `adapters`, the LoRA adapter that it wants; -1 for the base model. Requests of different
            adapters have no equal `prefix_ids`, since an engine shares no KV blocks between them.
        adapters: names.
        measured_ttft_seconds: arrival to first token as the recorded engine served it; NaN where not measured. For
            judging a replay; never an input of it.
        measured_e2e_seconds: arrival to last token, likewise; both columns are there or none.
    """

    name: str
    arrived_seconds: Seconds
    prompt_tokens: Tokens
    output_tokens: Tokens
    max_output_tokens: Tokens | None = None
    tenant: Tokens | None = None
    tenants: tuple[str, ...] = ("",)
    session: Tokens | None = None
    turn: Tokens | None = None
    think_seconds: Seconds | None = None
    prefix_ids: Sequence[Sequence[int]] | None = None
    prefix_block_tokens: int = 512
    deadline_seconds: Seconds | None = None
    deadline_is_slo: bool = False
    tpot_deadline_seconds: Seconds | None = None
    end_deadline_seconds: Seconds | None = None
    program: Tokens | None = None
    stage: Tokens | None = None
    stages: Tokens | None = None
    program_deadline_seconds: Seconds | None = None
    priority: Tokens | None = None
    offline: npt.NDArray[np.bool_] | None = None
    adapter: Tokens | None = None
    adapters: tuple[str, ...] = ()
    measured_ttft_seconds: Seconds | None = None
    measured_e2e_seconds: Seconds | None = None

    def __len__(self) -> int:
        return len(self.arrived_seconds)

    @property
    def has_later_deadlines(self) -> bool:
        """Whether a request may have a deadline after its first token, or belong to a program."""
        return (
            self.tpot_deadline_seconds is not None or self.end_deadline_seconds is not None or self.program is not None
        )

    def prefix_hashes(self, row: int) -> Sequence[int]:
        """The names of a row's full blocks, and so of ever longer prefixes of its prompt; none where unknown.

        Blocks beyond those with an id are the row's own.
        """
        if self.prefix_ids is None:
            return ()
        blocks = int(self.prompt_tokens[row]) // self.prefix_block_tokens
        ids = self.prefix_ids[row][:blocks]
        return ids if len(ids) == blocks else [*ids, *[~(row << 32 | place) for place in range(len(ids), blocks)]]
