"""Hints are bounded, never trusted, and never cost an answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.domain.engine_hints import MAX_DEADLINE_MS, MAX_EXPECTED_TOKENS, MAX_RANK, NAMES
from headway.domain.estimate import PointEstimate
from headway.domain.event import Cancelled, Completed
from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.domain.request import Request, RequestView
from headway.vllm_plugin.xargs_hints import NO_HINTS, HintedLengths, read_hints


class Five:
    def predict(self, request: RequestView) -> PointEstimate:
        return PointEstimate(5, "five")


def test_what_is_read() -> None:
    said = {
        "headway_expected_tokens": 37,
        "headway_deadline_ms": "250.5",
        "headway_tenant": "dave",
        "headway_session": "s-9",
        "headway_rank": -2,
        "headway_class": "offline",
        "other": 1,
    }
    hints = read_hints(said)
    assert hints == (37, 0.2505, "dave", "s-9", -2, (), True, None)


def test_deadlines_after_the_first_token_and_programs_are_read() -> None:
    said = {
        "headway_tpot_ms": "62.5",
        "headway_end_deadline_ms": 9_000,
        "headway_program": "task",
        "headway_program_stage": 2,
        "headway_program_stages": 5,
        "headway_program_deadline_ms": 60_000,
    }
    assert read_hints(said).later == LaterDeadlines(0.0625, 9.0, ProgramStage("task", 2, 5, 60.0))
    assert read_hints(said | {"headway_program_stages": 1}).later == LaterDeadlines(
        0.0625, 9.0, ProgramStage("task", 2, None, 60.0)
    ), "a stage beyond the last: their number is not known"
    odd = read_hints({"headway_program": "", "headway_program_stage": 3, "headway_tpot_ms": []})
    assert odd.later is None
    assert odd.ignored == ("headway_tpot_ms", "headway_program")


def test_what_is_ignored_is_named() -> None:
    said = {"headway_expected_tokens": True, "headway_deadline_ms": float("nan"), "headway_tenant": "a\nb"}
    assert read_hints(said).ignored == ("headway_expected_tokens", "headway_deadline_ms", "headway_tenant")


def test_out_of_bounds_is_forced_in() -> None:
    said = {"headway_expected_tokens": 10**30, "headway_deadline_ms": 1e300, "headway_tenant": "x" * 999}
    hints = read_hints(said)
    assert (hints.expected_tokens, hints.deadline_seconds) == (MAX_EXPECTED_TOKENS, MAX_DEADLINE_MS / 1000)
    assert hints.tenant == "x" * 64
    assert read_hints({"headway_expected_tokens": -5}).expected_tokens == 1
    assert read_hints({"headway_rank": -(10**400)}).rank == -MAX_RANK, "no float holds it"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(), lambda x: st.lists(x, max_size=3)
)


@given(st.one_of(anything, st.dictionaries(st.sampled_from(NAMES) | st.text(), anything)))
def test_no_client_can_break_it(said: object) -> None:
    hints = read_hints(said)
    assert hints.expected_tokens is None or 1 <= hints.expected_tokens <= MAX_EXPECTED_TOKENS
    assert hints.deadline_seconds is None or 0 <= hints.deadline_seconds <= MAX_DEADLINE_MS / 1000
    assert len(hints.tenant) <= 64


def test_nothing_said() -> None:
    assert read_hints(None) is NO_HINTS
    assert read_hints({"kv_transfer_params": {}}) is NO_HINTS


def request(id_: str, tenant: str = "") -> Request:
    return Request(id_, 0.0, 10, tenant=tenant, max_output_tokens=2_000)


def test_an_honest_hint_is_believed_and_silence_falls_to_the_predictor() -> None:
    lengths = HintedLengths(Five())
    lengths.hint("a", 300)
    assert lengths.predict(request("a")).remaining_mean(0) == pytest.approx(300, rel=0.01)
    assert lengths.predict(request("b")).made_by == "five"


def test_a_tenant_that_always_hints_one_token_is_soon_corrected() -> None:
    lengths = HintedLengths(Five())
    for index in range(100):
        liar, honest = request(f"l{index}", "liar"), request(f"h{index}", "honest")
        lengths.hint(liar.id, 100)
        lengths.hint(honest.id, 400)
        lengths.observe(Completed(liar, 0.0, 800))
        lengths.observe(Completed(honest, 0.0, 400))
    assert lengths.correction("honest") == pytest.approx(1.0)
    assert lengths.correction("liar") == pytest.approx(8.0, rel=0.05)
    lengths.hint("next", 100)
    assert lengths.predict(request("next", "liar")).remaining_mean(0) > 400


def test_no_request_is_remembered_after_its_end_and_tenants_are_bounded() -> None:
    lengths = HintedLengths(Five())
    for index in range(3_000):
        one = request(f"r{index}", tenant=f"t{index}")
        lengths.hint(one.id, 5)
        lengths.observe(Cancelled(one, 0.0) if index % 2 else Completed(one, 0.0, 5))
    assert not lengths._hinted
    assert len(lengths._ratios) <= 1024


def test_what_counts_as_a_number_and_as_a_text() -> None:
    def deadline(said: object) -> float | None:
        return read_hints({"headway_deadline_ms": said}).deadline_seconds

    assert [deadline(said) for said in (0, -1, "0", " 1500 ", 2.5)] == [0, 0, 0, 1.5, 0.0025]
    assert [deadline(said) for said in ("", "x", None, [1], "inf", "nan", float("inf"), -float("inf"), False)] == [
        None
    ] * 9
    assert deadline("1" + " " * 63) == 0.001
    assert deadline("1" + " " * 64) is None, "longer than any text that is read"
    assert read_hints({"headway_expected_tokens": 0}).expected_tokens == 1
    assert read_hints({"headway_expected_tokens": 2.6}).expected_tokens == 3
    assert read_hints({"headway_expected_tokens": "7"}) == (7, None, "", None, None, (), False, None)
    assert read_hints({"headway_rank": 10**400}).rank == MAX_RANK
    assert read_hints({"headway_rank": 1.7}).rank == 2
    assert read_hints({"headway_session": "y" * 65}).session == "y" * 64
    assert not read_hints({"headway_class": "online"}).is_offline
    assert read_hints({"headway_class": ["offline"]}).ignored == ("headway_class",)
    nothing = read_hints({"headway_tenant": "", "headway_session": 5, "headway_rank": "r"})
    assert (nothing.tenant, nothing.session, nothing.rank) == ("", None, None)
    assert nothing.ignored == ("headway_tenant", "headway_session", "headway_rank")


def completed(lengths: HintedLengths, name: str, tenant: str, hinted: int, produced: int) -> None:
    one = request(name, tenant)
    lengths.hint(one.id, hinted)
    lengths.observe(Completed(one, 0.0, produced))


def test_the_correction_by_hand() -> None:
    """A hundred tokens of doubt on either side, and an observation weighs half after fifty more."""
    lengths = HintedLengths(Five())
    assert lengths.correction("t") == 1.0
    completed(lengths, "a", "t", 300, 500)
    assert lengths.correction("t") == pytest.approx(600 / 400)
    assert lengths.correction("other") == 1.0
    completed(lengths, "b", "t", 100, 0)
    weight = 0.5 ** (1 / 50)
    assert lengths.correction("t") == pytest.approx((500 * weight + 100) / (300 * weight + 100 + 100))
    for number in range(50):
        completed(lengths, f"z{number}", "zero", 0, 1_000 if number == 0 else 0)
    completed(lengths, "last", "zero", 0, 0)
    assert lengths.correction("zero") == pytest.approx((500 + 100) / 100, rel=1e-6)


def test_a_correction_is_within_a_sixteenth_and_sixteen() -> None:
    lengths = HintedLengths(Five())
    completed(lengths, "a", "long", 1, 100_000)
    completed(lengths, "b", "short", 100_000, 0)
    assert (lengths.correction("long"), lengths.correction("short")) == (16.0, 1 / 16)
    lengths.hint("c", 10)
    assert lengths.predict(request("c", "long")).remaining_mean(0) == pytest.approx(160, rel=0.05)
    lengths.hint("d", 10)
    assert lengths.predict(request("d", "short")).remaining_mean(0) == pytest.approx(1.0), "a token at least"


def test_the_tenant_that_was_heard_least_lately_is_forgotten() -> None:
    lengths = HintedLengths(Five())
    completed(lengths, "a", "first", 100, 300)
    completed(lengths, "b", "second", 100, 300)
    completed(lengths, "c", "first", 100, 300)
    for number in range(1_022):
        completed(lengths, f"r{number}", f"t{number}", 100, 300)
    assert lengths.correction("second") == 2.0
    completed(lengths, "one more", "new", 100, 300)
    assert lengths.correction("second") == 1.0
    assert lengths.correction("first") > 2.0
    assert lengths.correction("new") == 2.0


def test_the_inner_predictor_hears_every_event() -> None:
    heard = []

    class Listens(Five):
        def observe(self, event: object) -> None:
            heard.append(event)

    lengths = HintedLengths(Listens())
    events = [Completed(request("a"), 0.0, 5), Cancelled(request("b"), 0.0)]
    for event in events:
        lengths.observe(event)
    assert heard == events
    assert lengths.correction("") == 1.0, "without a hint nothing is compared"
