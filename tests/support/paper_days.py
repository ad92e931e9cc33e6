"""Days that can be worked out on paper: every step takes one second, a block holds two tokens.

A step reads, for example,
`prefill 0:4@0 1:2@6; decode 3 over 20; preempt 2; free 5`: four tokens of row 0's prompt, nothing of it computed
before; two of row 1's with six before; three decodes over 20 tokens of context; row 2 preempted; five blocks free then.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from headway.domain.event import Event
from headway.policies.admission.greedy import Greedy
from headway.policies.contracts import AdmissionPolicy
from headway.policies.ordering.fcfs import Fcfs
from headway.policies.prediction.running_mean import RunningMean
from headway.policies.preemption.latest_admitted import LatestAdmitted
from headway.policies.preemption.lowest_priority import LowestPriority
from headway.scheduling.scheduler import Policies
from headway.simulator.outcome import NEVER, DayOutcome, StepRecord
from headway.simulator.reference import simulate_reference
from headway.simulator.rules import EngineRules
from headway.simulator.skipping import simulate
from headway.simulator.step_time import PS_PER_SECOND, LinearStepTime
from headway.simulator.trace import Trace

ONE_SECOND = LinearStepTime(fixed_ps=PS_PER_SECOND, ps_per_token=0, ps_per_context_token=0)
RULES = EngineRules(
    kv_blocks=100,
    block_tokens=2,
    prefix_caching=False,
    max_model_tokens=64,
    max_num_batched_tokens=16,
    max_num_seqs=4,
    async_scheduling=False,
)
ASYNC = replace(RULES, async_scheduling=True)


def requests(*rows: tuple[int, int], **columns: Any) -> Trace:
    """(prompt, output) tokens of each row; all come at second 0 unless `at` says otherwise."""
    at = columns.pop("at", [0] * len(rows))
    prefix_ids = columns.pop("prefix_ids", None)
    arrays: dict[str, Any] = {name: np.array(values) for name, values in columns.items()}
    return Trace(
        "by hand",
        np.array(at, dtype=float),
        np.array([prompt for prompt, _ in rows]),
        np.array([output for _, output in rows]),
        prefix_ids=prefix_ids,
        prefix_block_tokens=2,
        **arrays,
    )


class StepWords:
    """Writes steps down in words, and events as they come."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.events: list[Event] = []

    def on_step(self, step: StepRecord) -> None:
        parts = []
        if step.chunks:
            parts.append("prefill " + " ".join(f"{row}:{new}@{before}" for row, new, before in step.chunks))
        if step.decodes:
            parts.append(f"decode {step.decodes} over {step.context_tokens}")
        if step.preempted:
            parts.append("preempt " + " ".join(map(str, step.preempted)))
        self.steps.append("; ".join([*parts, f"free {step.blocks_free}"]))

    def observe(self, event: Event) -> None:
        self.events.append(event)


def run_day(
    trace: Trace, rules: EngineRules, *, admission: AdmissionPolicy | None = None, by_priority: bool = False
) -> tuple[list[str], DayOutcome]:
    """Steps in words, and the outcome. `by_priority` chooses victims by priority, the queue stays first come.

    Both engines live the day; that they agree is checked here, and the reference's day is returned.
    """
    words, outcomes = [], []
    for engine in (simulate, simulate_reference):
        step_words = StepWords()
        preemption = LowestPriority() if by_priority else LatestAdmitted()
        policies = Policies(Fcfs(), admission or Greedy(), preemption, RunningMean())
        outcomes.append(engine(trace, rules, ONE_SECOND, policies, observer=step_words))
        words.append(step_words.steps)
    assert words[0] == words[1]
    assert seconds(outcomes[0].ended_ps) == seconds(outcomes[1].ended_ps)
    return words[1], outcomes[1]


def seconds(times_ps: np.ndarray) -> list[float]:
    return [time if time == NEVER else time / PS_PER_SECOND for time in times_ps.tolist()]


TIGHT_DAY = requests((4, 4), (4, 4), (2, 1), at=[0, 0, 0.5])
"""With five blocks, row 1 is preempted at second 1 and waits in front of row 2."""
