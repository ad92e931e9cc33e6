"""Whatever becomes of the twin's process costs one look, and is said in a sentence."""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Sequence

import pytest

from headway.domain.later_deadlines import LaterDeadlines, ProgramStage
from headway.twin.auto_settings import AutoSettings
from headway.twin.auto_steering import AutoSteering
from headway.twin.chosen_bundle import ChosenBundle
from headway.twin.look_messages import EngineFacts, LookAnswer, LookFault, TwinLook
from headway.twin.look_process import LookProcess
from headway.twin.traffic_window import SeenRequest, TrafficWindow, columns_of

USUAL = ChosenBundle("highest-response-ratio")
GOOD = (
    '{"requests": 300, "measured": 300, "fidelity": 1.0, "judged": [{"bundle": {"ordering": "highest-response-ratio", '
    '"admission": "greedy", "preemption": "latest-admitted", "prediction": "running-mean", "options": {}}, '
    '"mean_ttft": 1.0, "p99_ttft": 2.0, "behind": 1.0}], "since": null, "step_time": [1, 1, 1, 1, 1], '
    '"cpu_seconds": 0.1}'
)
READS = "import sys\nfor line in sys.stdin:\n    "


def look() -> TwinLook:
    return TwinLook(EngineFacts(), 0.0, USUAL, USUAL)


def rows(count: int = 300) -> list[SeenRequest]:
    return [SeenRequest(float(number), 100, prefix=(number, 7)) for number in range(count)]


def process(script: str, *, answer_seconds: float = 30.0, memory_mb: int = 300) -> LookProcess:
    return LookProcess(memory_mb, answer_seconds, [sys.executable, "-c", script], pause=0.01)


def found(looks: LookProcess) -> LookAnswer | LookFault:
    looks.ask(look(), rows())
    while (answer := looks.take()) is None:
        time.sleep(0.01)
    return answer


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("raise SystemExit(3)", "ended by itself|Broken pipe"),
        (READS + "print('nonsense', flush=True)", "Expecting value"),
        (READS + "print('{}', flush=True)", "makes no sense"),
        (READS + f"print('''{GOOD}'''.replace('1.0', 'NaN', 1), flush=True)", "not finite"),
        (READS + f"print('''{GOOD}'''.replace('300', '\"many\"', 1), flush=True)", "makes no sense"),
        (READS + f"print('''{GOOD}'''.replace('[1, 1, 1, 1, 1]', '[1, 1]'), flush=True)", "makes no sense"),
        (READS + f"print('''{GOOD}'''.replace('0.1', '1' + 400 * '0'), flush=True)", "makes no sense"),
        (READS + f"print('''{GOOD}'''.replace('[{{', '[1, {{'), flush=True)", "makes no sense"),
        (READS + 'print(\'{"fault": "the look failed: why"}\', flush=True)', "the look failed: why"),
        (READS + "print('x' * (2 << 20), flush=True)", "without end|Expecting value"),
    ],
)
def test_a_fault_is_a_sentence_and_the_next_look_has_a_new_process(script: str, why: str) -> None:
    looks = process(script)
    try:
        answer = found(looks)
        assert isinstance(answer, LookFault)
        assert re.search(why, answer.reason), answer.reason
        first = looks.pause_seconds
        assert first > 0
        assert isinstance(found(looks), LookFault)
        assert looks.pause_seconds == 2 * first
        assert (looks.faults, looks.starts) == (2, 2)
    finally:
        looks.close()


def test_a_process_that_hangs_is_ended() -> None:
    looks = process("import time; time.sleep(600)", answer_seconds=0.3)
    answer = found(looks)
    assert isinstance(answer, LookFault)
    assert "did not answer within 0.3 s" in answer.reason
    looks.close()


def test_a_process_that_takes_too_much_memory_is_ended() -> None:
    looks = process("held = bytearray(200 << 20)\nimport time; time.sleep(600)", memory_mb=100)
    answer = found(looks)
    assert isinstance(answer, LookFault)
    assert "more than the 100 MiB that it may" in answer.reason
    assert looks.memory_bytes == 0
    looks.close()


def test_after_an_answer_the_process_is_kept_and_the_pause_is_forgotten() -> None:
    looks = process(READS + f"print('''{GOOD}''', flush=True)")
    assert isinstance(found(looks), LookAnswer)
    assert isinstance(found(looks), LookAnswer)
    assert (looks.starts, looks.faults, looks.pause_seconds) == (1, 0, 0.0)
    looks.close()


def test_to_close_waits_for_no_look_and_leaves_no_process() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class SlowLook(TwinLook):
        def of(self, rows: Sequence[SeenRequest]) -> TwinLook:
            begun.set()
            go_on.wait()
            return look()

    looks = process(READS + f"print('''{GOOD}''', flush=True)")
    looks.ask(SlowLook(EngineFacts(), 0.0, USUAL, USUAL), rows())
    begun.wait()
    looks.close()
    go_on.set()
    while (answer := looks.take()) is None:
        time.sleep(0.01)
    assert isinstance(answer, LookFault)
    assert looks.starts == 0


def test_to_close_ends_the_process_of_a_look_under_way() -> None:
    looks = process("import time; time.sleep(600)")
    looks.ask(look(), rows())
    while not looks.memory_bytes:
        time.sleep(0.01)
    looks.close()
    while (answer := looks.take()) is None:
        time.sleep(0.01)
    assert isinstance(answer, LookFault)
    assert looks.memory_bytes == 0, "it was waited for"


class SlowLooks:
    """Each look takes so much processor time."""

    is_busy = False
    memory_bytes = 0
    pause_seconds = 0.0

    def __init__(self, cost: float) -> None:
        self.cpu_seconds, self.asked = 0.0, 0
        self._cost = cost

    def ask(self, look: TwinLook, rows: object) -> None:
        self.is_busy = True
        self.asked += 1
        self.cpu_seconds += self._cost

    def take(self) -> LookAnswer | LookFault:
        self.is_busy = False
        return LookAnswer.from_line(GOOD.encode())

    def close(self) -> None:
        pass


@pytest.mark.parametrize(("cost", "share"), [(5.0, 0.05), (20.0, 0.05), (5.0, 0.01)])
def test_it_keeps_within_its_share_of_a_core(cost: float, share: float) -> None:
    looks, window = SlowLooks(cost), TrafficWindow(1_000)
    for one in rows():
        window.add(one)
    steering = AutoSteering(AutoSettings(on=True, cpu_share=share), USUAL, looks, window, EngineFacts)
    steering.poll(0.0)
    steering.switched(0.0)  # to what it begins with
    for second in range(7_200):
        steering.poll(float(second))
    assert looks.cpu_seconds <= share * 7_200 + cost
    assert looks.asked >= min(share * 7_200 / cost, 7_200 / AutoSettings().look_seconds) - 1


def test_a_window_keeps_so_many_requests_and_so_many_hashes() -> None:
    window = TrafficWindow(200)
    for number in range(1_000):
        window.add(SeenRequest(float(number), 10, prefix=range(10_000)))
    assert len(window) == len(window.rows()) == 200
    assert {len(one.prefix) for one in window.rows()} == {256}


def test_a_question_holds_numbers_and_no_names() -> None:
    secret = SeenRequest(0.0, 10, tenant="acme", session="of-alice", prefix=(12345,))
    secret.replica = "10.0.0.5:8000"
    line = look().of([secret]).to_line()
    assert all(name not in line for name in (b"acme", b"alice", b"10.0.0.5", b"12345"))
    again = TwinLook.from_line(line)
    assert again.columns == look().of([secret]).columns
    assert again.current == USUAL


def test_programs_of_one_name_are_told_apart_by_tenant() -> None:
    later = LaterDeadlines(program=ProgramStage("nightly"))
    rows = [SeenRequest(0.0, 10, tenant=tenant, later=later) for tenant in ("a", "b", "a")]
    assert columns_of([*rows, SeenRequest(0.0, 10)])["program"] == [0, 1, 0, -1]
