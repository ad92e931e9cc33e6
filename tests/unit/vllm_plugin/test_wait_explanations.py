"""Why a request waited, asked over HTTP while an engine runs in another thread's time."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import deque
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from headway.bench.user_mistake import UserMistake
from headway.cli.explain_live import live_lines
from headway.domain.request import Request
from headway.vllm_plugin import wait_explanations as stories
from headway.vllm_plugin.explain_endpoint import WhyEndpoint
from headway.vllm_plugin.request_entries import Entry
from headway.vllm_plugin.scheduler_mixin import PolicyScheduling
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import Status, StubEngine, StubRequest


class Engine(PolicyScheduling, StubEngine):
    """One seat."""

    seats = 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def asked() -> Iterator[tuple[Engine, str]]:
    """An engine that answers, and where."""
    port = free_port()
    engine = Engine(headway={"ordering": "shortest-prompt-first", "why_listen": f"127.0.0.1:{port}"})
    now = [0.0]
    engine.headway.clock = lambda: now[0]
    engine.now = now  # type: ignore[attr-defined]
    yield engine, f"http://127.0.0.1:{port}"
    engine.shutdown()


def step(engine: Engine, seconds: float = 1.0) -> None:
    output = engine.schedule()
    engine.now[0] += seconds  # type: ignore[attr-defined]
    engine.update_from_output(output)


def test_a_waiting_and_an_admitted_request_are_explained(asked: tuple[Engine, str]) -> None:
    engine, url = asked
    engine.add_request(StubRequest("cmpl-first-0-ab12", 500, output=3))
    step(engine)
    engine.add_request(StubRequest("cmpl-long-0-cd34", 900))
    engine.add_request(StubRequest("cmpl-short-0-ef56", 20, output=2))
    for _ in range(4):
        step(engine)
    waiting = live_lines(url, "long")
    assert waiting[0] == (
        "cmpl-long-0-cd34: (900 prompt tokens, 0 cached; order shortest-prompt-first) "
        "waited 4.00 s (4.00 s seats); 1 later arrival was admitted before it"
    ), "its client's own id is enough"
    assert "state                 waiting" in waiting
    short = live_lines(url, "cmpl-short-0-ef56")
    assert "waited 2.00 s (2.00 s seats); no later arrival was admitted before it" in short[0]
    assert "state                 admitted" in short


def test_of_several_answers_the_longest_wait_is_explained(asked: tuple[Engine, str]) -> None:
    engine, url = asked
    for part in range(3):
        engine.add_request(StubRequest(f"{part}_chatcmpl-many-9f", 10, output=2))
    for _ in range(5):
        step(engine)
    lines = live_lines(url, "chatcmpl-many")
    assert lines[0].startswith("2_chatcmpl-many-9f: ")
    assert "parts                 3" in lines


def test_only_the_latest_are_remembered(asked: tuple[Engine, str], monkeypatch: pytest.MonkeyPatch) -> None:
    engine, url = asked
    monkeypatch.setattr(engine.headway.report.explanations, "_latest", deque[stories.WaitExplanation](maxlen=2))
    for index in range(3):
        engine.add_request(StubRequest(f"r{index}", 10, output=1))
        step(engine)
    assert live_lines(url, "r2")
    with pytest.raises(UserMistake, match=r"does not know 'r0': it keeps the requests inside and the latest that left"):
        live_lines(url, "r0")
    assert stories.REMEMBERED <= 10_000


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"why_listen: cannot listen on 127.0.0.1:{port}: .*; name another"):
            Engine(headway={"why_listen": f"127.0.0.1:{port}"})


class Foreign(BaseHTTPRequestHandler):
    """A server that is not Headway's."""

    def do_GET(self) -> None:
        status, body = (404, b"not here") if self.path.startswith("/headway") else (200, b"<html>")
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_servers_that_cannot_tell_are_named_in_one_sentence() -> None:
    server = HTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        with pytest.raises(UserMistake, match=r"has no /headway/why; .* \(with tenants its admin_listen\), or"):
            live_lines(url, "r0")
        with pytest.raises(UserMistake, match=r"its answer is not JSON"):
            live_lines(url + "/other", "r0")
    finally:
        server.shutdown()
        server.server_close()
    with pytest.raises(UserMistake, match=r"nothing answers there"):
        live_lines(url, "r0")
    with pytest.raises(UserMistake, match=r"must be an address such as"):
        live_lines("ftp://x", "r0")


def test_addresses_of_either_family_are_listened_on() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6 loopback address")
    endpoint = WhyEndpoint("::1", 0, lambda request_id: {"request": request_id, "why": "it did not"})
    try:
        assert live_lines(f"http://[::1]:{endpoint.port}", "r1")[0] == "r1: it did not"
    finally:
        endpoint.close()


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 65_536), ("a" * 70, 9901)])
def test_an_address_that_cannot_be_used_is_one_sentence(host: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"^headway: why_listen: cannot listen on .*; name another address$"):
        WhyEndpoint(host, port, lambda request_id: None)


def test_an_address_that_cannot_be_read_is_answered() -> None:
    endpoint = WhyEndpoint("127.0.0.1", 0, lambda request_id: None)
    try:
        asking = HTTPConnection("127.0.0.1", endpoint.port, timeout=30)
        asking.putrequest("GET", "http://[/headway/why", skip_host=True)
        asking.endheaders()
        assert asking.getresponse().status == 400
        asking.close()
    finally:
        endpoint.close()


def test_a_flood_of_connections_gets_so_many_threads_and_no_more() -> None:
    endpoint = WhyEndpoint("127.0.0.1", 0, lambda request_id: {"request": request_id})
    held = [socket.create_connection(("127.0.0.1", endpoint.port)) for _ in range(16)]
    with socket.create_connection(("127.0.0.1", endpoint.port)) as beyond:
        beyond.settimeout(120)
        assert beyond.recv(1) == b""
    for one in held:
        one.close()
    answers = b""
    while b"200 OK" not in answers:  # until the threads are free again
        with socket.create_connection(("127.0.0.1", endpoint.port)) as client, contextlib.suppress(ConnectionError):
            client.settimeout(120)
            client.sendall(b"GET /headway/why?id=a HTTP/1.0\r\n\r\n")
            answers = client.recv(1_000)
    endpoint.close()


def test_an_explanation_as_plain_values() -> None:
    engine = Engine(headway={"ordering": "fcfs"})
    now = [0.0]
    engine.headway.clock = lambda: now[0]
    engine.add_request(StubRequest("runs", 10))
    engine.schedule()
    now[0] = 1.0
    engine.add_request(StubRequest("waits", 20))
    now[0] = 3.0000004
    assert engine.headway.explain("waits") == {
        "request": "waits",
        "state": "waiting",
        "admitted_at": None,
        "waited_seconds": 2.0,
        "by_reason_seconds": {"idle": 2.0},
        "overtaken_by": 0,
        "order": "fcfs",
        "prompt_tokens": 20,
        "cached_prompt_tokens": 0,
        "why": "(20 prompt tokens, 0 cached; order fcfs) waited 2.00 s (2.00 s idle); no later arrival was admitted "
        "before it",
        "parts": 1,
    }
    runs = engine.headway.explain("runs")
    assert runs is not None
    assert (runs["state"], runs["admitted_at"], runs["waited_seconds"]) == ("admitted", 0.0, 0.0)
    assert engine.headway.explain("run") is None, "half a name is another's"
    assert engine.headway.explain("r.ns") is None, "it is no pattern"


def test_a_request_that_cannot_run_yet_is_said_to_be_parked() -> None:
    engine = Engine()
    request = StubRequest("7_cmpl-mine-ab", 10)
    request.status = Status.WAITING_FOR_REMOTE_KVS
    engine.add_request(request)
    facts = engine.headway.explain("mine")
    assert facts is not None
    assert facts["state"] == "parked"
    assert facts["request"] == "7_cmpl-mine-ab"


def test_a_request_that_vllm_stepped_over_is_said_to_be_parked() -> None:
    queue = (engine := Engine()).headway.queue
    engine.add_request(StubRequest("skipped", 10))
    queue.prepend_requests([queue.pop_request()])
    facts = engine.headway.explain("skipped")
    assert facts is not None
    assert (facts["state"], queue.parked) == ("parked", 1)
    queue.begin_scan(1.0)
    facts = engine.headway.explain("skipped")
    assert facts is not None
    assert (facts["state"], queue.parked) == ("waiting", 0)


def test_so_many_of_the_latest_are_remembered() -> None:
    explanations = stories.WaitExplanations()
    entry = Entry(StubRequest("first", 5), Request("first", 0.0, 5), NO_HINTS, 0)  # type: ignore[arg-type]
    entry.wait_began = explanations.clocks.reading(0.0)
    for number in range(4_097):
        entry.id = f"r{number}"
        explanations.admitted(entry, "fcfs", 1.0)
    assert explanations.explain("r0", {}, "fcfs", 2.0) is None
    assert explanations.explain("r1", {}, "fcfs", 2.0) is not None


def test_what_changes_while_it_is_read_is_read_again() -> None:
    answers = iter([RuntimeError("dictionary changed size during iteration"), 5])

    def read() -> int:
        answer = next(answers)
        if isinstance(answer, RuntimeError):
            raise answer
        return answer

    assert stories._undisturbed(read) == 5
