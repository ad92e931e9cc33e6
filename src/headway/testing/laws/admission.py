"""Laws of admission: an idle replica admits any request, and a refusal stands as long as it says."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy

from hypothesis import given, settings
from hypothesis import strategies as st

from headway.domain.replica_view import MemoryView
from headway.domain.request import Request
from headway.policies.contracts import UNTIL_THE_BATCH_CHANGES, AdmissionPolicy
from headway.testing.examples import examples
from headway.testing.scripted import ScriptedBatch
from headway.testing.strategies import requests

MakeAdmission = Callable[[], AdmissionPolicy]

_FURTHEST = 60  # steps that a refusal is followed


@st.composite
def _situations(draw: st.DrawFn, max_size: int = 5) -> tuple[list[Request], MemoryView]:
    """A batch of up to `max_size`, a candidate (the last of the list), and memory from far too little to ample."""
    everyone = draw(st.lists(requests(max_produced_tokens=50), min_size=1, max_size=max_size + 1))
    for number, request in enumerate(everyone):
        request.id = number
    block_tokens = draw(st.sampled_from([1, 2, 16]))
    tokens = sum(request.prompt_tokens + request.produced_tokens for request in everyone)
    blocks_total = draw(st.integers(1, 4 + 2 * tokens // block_tokens))
    return everyone, MemoryView(draw(st.integers(0, blocks_total)), blocks_total, block_tokens)


def an_empty_batch_is_answered_with_0(make: MakeAdmission) -> None:
    """With an empty batch even the largest request comes in, or nothing would ever run."""

    @settings(deadline=None, max_examples=examples(50))
    @given(situation=_situations(max_size=0), now=st.floats(0, 1e6))
    def check(situation: tuple[list[Request], MemoryView], now: float) -> None:
        (candidate,), memory = situation
        steps = make().hold_steps(candidate, ScriptedBatch(), memory, now)
        assert steps == 0, f"an idle replica refuses {candidate!r} for {steps} steps"

    check()


def hold_steps_never_overstates(make: MakeAdmission) -> None:
    """A caller that asks again at every step is refused as long as the first answer said.

    A caller that waits that long and then asks gets the same answer: skipping is free.
    """

    @settings(deadline=None, max_examples=examples(100))
    @given(situation=_situations())
    def check(situation: tuple[list[Request], MemoryView]) -> None:
        everyone, memory = situation
        patient, eager = make(), make()
        patient_batch = ScriptedBatch([copy(request) for request in everyone[:-1]])
        eager_batch = ScriptedBatch([copy(request) for request in everyone[:-1]])
        candidate = everyone[-1]
        steps = patient.hold_steps(candidate, patient_batch, memory, 0.0)
        assert steps >= 0, f"{steps} steps is no answer"
        assert eager.hold_steps(candidate, eager_batch, memory, 0.0) == steps, "two fresh policies differ"
        for step in range(1, min(steps, _FURTHEST)):
            eager_batch.decode()
            left = eager.hold_steps(candidate, eager_batch, memory, 0.0)
            assert left >= 1, f"the refusal was to stand for {steps} steps and fell after {step}"
        if 0 < steps <= _FURTHEST:
            eager_batch.decode()
            patient_batch.decode(steps)
            late = patient.hold_steps(candidate, patient_batch, memory, 0.0)
            assert late == eager.hold_steps(candidate, eager_batch, memory, 0.0), "asking more often changed the answer"
        elif steps >= UNTIL_THE_BATCH_CHANGES:
            patient_batch.decode(100_000)
            assert patient.hold_steps(candidate, patient_batch, memory, 0.0) >= 1, "it did not stand for ever"

    check()


def admission_repeats_itself(make: MakeAdmission) -> None:
    """Asking changes nothing, also for others; and what a policy keeps of a batch is forgotten when that changes."""

    @settings(deadline=None, max_examples=examples(50))
    @given(situation=_situations(), moves=st.lists(st.integers(0, 9), max_size=8))
    def check(situation: tuple[list[Request], MemoryView], moves: list[int]) -> None:
        everyone, memory = situation
        asked_often = make()
        batch = ScriptedBatch()
        outside = list(everyone)
        for move in moves:
            if move < 4 and len(outside) > 1:
                batch.join(outside.pop(0))
            elif move < 6 and batch.size:
                batch.leave(batch.running()[move % batch.size])
            elif move < 8:
                batch.decode(move - 5)
            for candidate in outside:
                first = asked_often.hold_steps(candidate, batch, memory, 0.0)
                again = asked_often.hold_steps(candidate, batch, memory, 0.0)
                fresh = make().hold_steps(candidate, batch, memory, 0.0)
                assert first == again == fresh, f"{candidate!r}: {first}, then {again}, and {fresh} from a fresh policy"

    check()
