"""The days of the deadlines study: which request gets which deadline."""

from __future__ import annotations

import numpy as np

from benchmarks.studies.deadlines.days import END_SECONDS, STAGES_MOST, of_kinds
from headway.simulator.trace import Trace


def test_each_request_is_a_chat_a_call_or_a_stage_and_programs_have_a_few_stages_in_order() -> None:
    count = 400
    day = of_kinds(Trace("t", np.arange(count, dtype=float), np.full(count, 10), np.full(count, 5)))
    assert day.deadline_seconds is not None
    assert day.end_deadline_seconds is not None
    assert day.program is not None
    assert day.stage is not None
    assert day.program_deadline_seconds is not None
    chat, call, staged = ~np.isnan(day.deadline_seconds), ~np.isnan(day.end_deadline_seconds), day.program >= 0
    assert (chat.astype(int) + call + staged == 1).all()
    assert 0.4 < chat.mean() < 0.6
    for program in range(int(day.program.max())):  # the last one may be cut short
        rows = np.flatnonzero(day.program == program)
        assert 2 <= len(rows) <= STAGES_MOST
        assert day.stage[rows].tolist() == list(range(1, len(rows) + 1))
        assert (day.program_deadline_seconds[rows] == END_SECONDS * len(rows)).all()
