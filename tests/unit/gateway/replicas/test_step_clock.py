"""The step clock counts an engine's decode steps: by one stream, by another when that stalls, else by the engine."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest

from headway.gateway.openai.answer_readers import SequencesReader
from headway.gateway.replicas.in_flight import InFlight
from headway.gateway.replicas.step_clock import DecodingStream, Progress, StepClock
from tests.support.estimated_request import estimated_request


@dataclass
class Answer:
    events: int = 0
    sequence_tokens: int = 0


def stream(answer: Progress | None = None, sequences: int = 1) -> DecodingStream:
    return DecodingStream(answer, sequences)


def test_each_token_of_one_stream_is_a_step() -> None:
    clock, answer = StepClock(), Answer()
    one = stream(answer)
    clock.look([one], 0.0)
    assert clock.steps == 0
    clock.begins(one)
    answer.events = 7
    clock.look([one], 1.0)
    assert (clock.steps, clock.tokens_of(one)) == (7, 7)


def test_jitter_between_streams_adds_no_steps() -> None:
    """Streams of one engine are seen a token before or after each other, and looked at in between."""
    chance, clock = random.Random(1), StepClock()
    answers = [Answer() for _ in range(20)]
    streams = [stream(answer) for answer in answers]
    for one in streams:
        clock.begins(one)
    for step in range(1, 501):
        for number in chance.sample(range(20), 20):
            answers[number].events = step
            if chance.random() < 0.3:
                clock.look(streams, step + number / 100)
    clock.look(streams, 501.0)
    assert clock.steps == 500


def test_streams_that_come_and_go_lose_a_step_each_at_most() -> None:
    chance, clock = random.Random(2), StepClock()
    inside: list[tuple[DecodingStream, Answer]] = []
    ends = 0
    for step in range(1, 1_001):
        for _, answer in inside:
            answer.events += 1
        if inside and chance.random() < 0.2:
            gone, _ = inside.pop(0)
            clock.ends(gone, [one for one, _ in inside])
            ends += 1
        while len(inside) < 8:
            answer = Answer()
            inside.append((stream(answer), answer))
            clock.begins(inside[-1][0])
        if step % 50 == 0:
            clock.look([one for one, _ in inside], float(step))
    assert 1_000 - ends <= clock.steps <= 1_000
    assert ends > 100


def test_a_stream_that_stalls_is_left_for_one_that_moves() -> None:
    clock, preempted, lively = StepClock(), Answer(), Answer()
    streams = [stream(preempted), stream(lively)]
    for one in streams:
        clock.begins(one)
    preempted.events = lively.events = 5
    clock.look(streams, 1.0)
    lively.events = 10  # not enough to tell
    clock.look(streams, 2.0)
    assert clock.steps == 5
    lively.events = 105
    clock.look(streams, 3.0)
    assert clock.steps == 105
    preempted.events = 6  # it runs again, and counts for nothing
    lively.events = 106
    clock.look(streams, 4.0)
    assert clock.steps == 106


def test_tokens_that_come_late_count_no_second_time() -> None:
    """Both streams have a token for each step; those of one are held up on their way, and come together."""
    clock, held_up, lively = StepClock(), Answer(), Answer()
    streams = [stream(lively), stream(held_up)]
    for one in streams:
        clock.begins(one)
    for step in range(1, 101):
        lively.events = step
        clock.look(streams, step / 100)
    held_up.events = 100
    clock.look(streams, 1.005)
    assert clock.steps == 100
    held_up.events = 107
    clock.look(streams, 1.07)
    assert clock.steps == 100, "not enough to tell that the other has stalled"
    held_up.events = 108
    clock.look(streams, 1.08)
    assert clock.steps == 108


def test_late_tokens_of_the_stream_that_is_followed_count_no_second_time() -> None:
    """The engine's counter counted their steps."""
    clock, answer = StepClock(), Answer()
    one = stream(answer)
    clock.begins(one)
    clock.engine_counted(0, [one])
    answer.events = 5
    clock.engine_counted(5, [one])
    for report in range(1, 4):
        clock.engine_counted(5 + 50 * report, [one])
    answer.events = 155
    clock.look([one], 1.0)
    assert clock.steps == 155
    answer.events = 160
    clock.look([one], 2.0)
    assert clock.steps == 160


def test_a_request_that_was_preempted_for_a_while_is_taken_up_when_it_runs_again() -> None:
    clock, lively, preempted = StepClock(), Answer(), Answer()
    streams = [stream(lively), stream(preempted)]
    for one in streams:
        clock.begins(one)
    for step in range(1, 201):
        lively.events = step
        preempted.events = max(0, step - 100)
        clock.look(streams, step / 100)
    for step in range(201, 301):  # the other is preempted now
        preempted.events = step - 100
        clock.look(streams, step / 100)
    assert 299 <= clock.steps <= 300


def test_steps_counted_as_a_request_begins_or_ends_count_no_second_time() -> None:
    clock, followed, other = StepClock(), Answer(), Answer()
    streams = [stream(followed), stream(other), stream(Answer())]
    clock.begins(streams[0])
    clock.begins(streams[1])
    followed.events, other.events = 10, 11
    clock.begins(streams[2])
    assert clock.steps == 10
    clock.look(streams, 1.0)
    assert clock.steps == 10


def test_without_a_stream_the_engines_counter_counts() -> None:
    clock, quiet = StepClock(), stream(None)
    clock.engine_counted(1_000, [])
    clock.engine_counted(1_100, [])
    assert clock.steps == 0, "no request was there"
    clock.begins(quiet)
    clock.engine_counted(1_130, [])
    assert (clock.steps, clock.tokens_of(quiet)) == (30, 30)
    clock.engine_counted(3, [])  # the engine was started again
    clock.engine_counted(8, [])
    assert clock.steps == 35
    clock.engine_counted(1e15, [])  # it counts something else
    clock.engine_counted(1e15 + 4, [])
    assert clock.steps == 39


def test_with_a_stream_the_engines_counter_counts_nothing() -> None:
    clock, answer = StepClock(), Answer()
    one = stream(answer)
    clock.begins(one)
    answer.events = 10
    clock.engine_counted(50, [one])
    answer.events = 20
    clock.look([one], 1.0)
    clock.engine_counted(70, [one])
    assert clock.steps == 20


def test_the_engines_counter_counts_while_the_stream_stalls() -> None:
    """Such as one whose client reads no further, beside requests that do not stream."""
    clock, stalled = StepClock(), Answer()
    streams = [stream(stalled), stream(None)]
    for one in streams:
        clock.begins(one)
    stalled.events = 5
    clock.engine_counted(5, streams)
    for report in range(1, 10):
        clock.engine_counted(5 + 50 * report, streams)
        clock.look(streams, float(report))
    assert clock.steps == clock.tokens_of(streams[1]) == 455
    stalled.events = 6
    clock.look(streams, 10.0)
    assert clock.steps == 456


def test_no_step_counts_twice_where_a_stream_comes_beside_a_silent_request() -> None:
    clock, answer = StepClock(), Answer()
    streams = [stream(None), stream(answer)]
    clock.engine_counted(0, [])
    for one in streams:
        clock.begins(one)
    answer.events = 50
    clock.engine_counted(50, streams)
    clock.look(streams, 1.0)
    assert clock.steps == 50
    answer.events = 70
    clock.look(streams, 2.0)
    clock.engine_counted(75, streams)
    assert clock.steps == 70, "the stream counts now"
    answer.events = 75
    clock.look(streams, 3.0)
    assert clock.steps == 75


def test_the_ledger_notes_that_the_engines_counter_moved_its_clock() -> None:
    ledger = InFlight("r")
    decoding, prefilling = estimated_request(0), estimated_request(1)
    ledger.engine_counted(0)
    ledger.enter(decoding)
    ledger.first_token(decoding)
    ledger.enter(prefilling)
    version = ledger.version
    ledger.engine_counted(20)
    assert (ledger.decode_steps, ledger.version) == (20, version + 1)


def test_the_pace_is_that_of_the_stream() -> None:
    clock, answer = StepClock(), Answer()
    one = stream(answer)
    clock.begins(one)
    for look in range(60):
        answer.events = 25 * look
        clock.look([one], float(look))
    assert clock.step_seconds == pytest.approx(0.04, rel=0.01)


def test_several_sequences_share_the_events() -> None:
    clock, answer = StepClock(), Answer()
    four = stream(answer, 4)
    clock.begins(four)
    answer.events, answer.sequence_tokens = 43, 10
    clock.look([four], 1.0)
    assert (clock.steps, clock.tokens_of(four)) == (10, 10)


def test_sequences_that_end_sooner_do_not_slow_the_clock() -> None:
    """Three answers of 10, 20 and 100 tokens: the clock goes by the longest, a step for each token."""
    clock, lengths = StepClock(), (10, 20, 100)
    answer = SequencesReader(3, hide_usage=False)
    three = stream(answer, 3)
    clock.begins(three)
    for step in range(1, 101):
        for index, length in enumerate(lengths):
            if step <= length:
                end = b'"stop"' if step == length else b"null"
                answer.pass_on(b'data: {"choices":[{"index":%d,"text":"a","finish_reason":%b}]}\n\n' % (index, end))
        clock.look([three], float(step))
        assert (clock.steps, clock.tokens_of(three)) == (step, step)


def test_the_ledger_is_an_honest_batch() -> None:
    """Version and steps change as `BatchView` says: also where a prompt was cached as a whole."""
    ledger, answer, late = InFlight("r"), Answer(), Answer()
    streamed, cached, whole = (estimated_request(number, 100, 50) for number in range(3))
    cached.cached_prompt_tokens = 100
    ledger.enter(streamed, answer)
    ledger.first_token(streamed)
    ledger.enter(cached, late)
    ledger.enter(whole)
    version = ledger.version
    ledger.first_token(cached)
    assert ledger.version == version + 1
    ledger.first_token(cached)
    assert ledger.version == version + 1
    ledger.first_token(whole)
    answer.events, late.events = 9, 4
    version = ledger.version
    assert ledger.progress(1.0) == [(streamed, 9), (cached, 4), (whole, 9)]
    assert (ledger.decode_steps, ledger.version) == (9, version)


def test_the_next_stream_to_follow_is_found_without_a_look_at_all() -> None:
    looks = 0

    class Counted:
        sequence_tokens = 0

        @property
        def events(self) -> int:
            nonlocal looks
            looks += 1
            return 1

    ledger, requests = InFlight("a"), [estimated_request(number) for number in range(1_000)]
    for request in requests:
        ledger.enter(request, Counted())
        ledger.first_token(request)
    looks = 0
    for request in requests:  # the oldest ends first, as where all answers are as long
        ledger.leave(request)
    assert looks < 10 * len(requests)
