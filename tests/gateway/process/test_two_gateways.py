"""Two processes of the gateway, one engine and one lease file: one serves, the other takes over, and never both."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from headway.gateway.settings_file import read_settings
from tests.support.serve_process import fetched, serving

if TYPE_CHECKING:
    from tests.support.kubernetes_server import KubernetesServer

LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"
SECONDS = 3
SOON = 60.0  # that a slow machine may take; the lease's own time is far shorter


class GatewayProcess:
    """One of the two."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url
        self.told: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with suppress(ValueError, OSError):
            self.told.extend(self.process.stderr)

    def ready(self) -> dict[str, object]:
        return dict(json.loads(fetched(self.url + "/ready")))

    @property
    def serves(self) -> bool:
        with suppress(OSError):
            return self.ready()["ready"] is True
        return False

    def ask(self, tokens: int = 1) -> dict[str, object]:
        body = {"model": "llama-3.1-8b", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True}
        return dict(json.loads(fetched(self.url + "/v1/completions", body)))


@contextmanager
def gateways(folder: Path, number: int = 2, lease: str = "") -> Iterator[list[GatewayProcess]]:
    lease = lease or f'file = "{folder / "lease"}"'
    settings = folder / "gateway.toml"
    with ExitStack() as stack:
        _, engine = stack.enter_context(serving())
        settings.write_text(
            f"lease = {{{lease}, seconds = {SECONDS}}}\n"
            "health = {lame_duck_seconds = 0.5, drain_seconds = 20.0}\n"
            f'replica = [{{url = "{engine}", max_requests = 1}}]\n'
        )
        yield [GatewayProcess(*stack.enter_context(serving("--config", settings))) for _ in range(number)]


def until(fact: Callable[[], object]) -> float:
    began = time.monotonic()
    while not fact():
        assert time.monotonic() - began < SOON, "it did not come about"
        time.sleep(0.02)
    return time.monotonic() - began


def active_of(both: list[GatewayProcess]) -> GatewayProcess:
    until(lambda: any(one.serves for one in both))
    (active,) = [one for one in both if one.serves]
    return active


def other_of(both: list[GatewayProcess], one: GatewayProcess) -> GatewayProcess:
    return next(other for other in both if other is not one)


def test_one_serves_and_the_other_says_that_it_stands_by(tmp_path: Path) -> None:
    with gateways(tmp_path) as both:
        active = active_of(both)
        passive = other_of(both, active)
        assert active.ready()["standby"] is False
        assert passive.ready() == {
            "ready": False,
            "replicas_up": 1,
            "replicas_drained": 0,
            "draining": False,
            "standby": True,
        }
        assert active.ask()["choices"]
        refused = passive.ask()["error"]
        assert isinstance(refused, dict)
        assert "another one is active" in refused["message"]
        assert 'reason="standby"' in fetched(passive.url + "/metrics")
        assert "headway_lease_held 0.0" in fetched(passive.url + "/metrics")


def test_a_holder_that_is_killed_is_replaced_within_seconds(tmp_path: Path) -> None:
    with gateways(tmp_path) as both:
        active = active_of(both)
        passive = other_of(both, active)
        os.kill(active.process.pid, signal.SIGKILL)
        until(lambda: passive.serves)
        assert passive.ask()["choices"]


def test_a_holder_that_ends_hands_over_at_once_and_finishes_what_it_has(tmp_path: Path) -> None:
    with gateways(tmp_path) as both:
        active = active_of(both)
        passive = other_of(both, active)
        answers: list[dict[str, object]] = []
        asking = [
            threading.Thread(target=lambda: answers.append(active.ask(tokens=100))) for _ in range(3)
        ]  # one runs, two wait
        for thread in asking:
            thread.start()
        until(lambda: json.loads(fetched(active.url + "/headway/state"))["counts"]["inside"] == 3)
        os.kill(active.process.pid, signal.SIGTERM)
        until(lambda: passive.serves)
        for thread in asking:
            thread.join()
        assert [bool(answer.get("choices")) for answer in answers] == [True] * 3
        assert active.process.wait(SOON) == 0


def test_a_holder_that_is_paused_has_lost_the_lease_when_it_goes_on(tmp_path: Path) -> None:
    with gateways(tmp_path) as both:
        active = active_of(both)
        passive = other_of(both, active)
        answers: list[dict[str, object]] = []
        asking = [threading.Thread(target=lambda: answers.append(active.ask(tokens=400))) for _ in range(3)]
        for thread in asking:
            thread.start()
        until(lambda: json.loads(fetched(active.url + "/headway/state"))["counts"]["inside"] == 3)
        os.kill(active.process.pid, signal.SIGSTOP)
        try:
            until(lambda: passive.serves)
            assert passive.ask()["choices"]
        finally:
            os.kill(active.process.pid, signal.SIGCONT)
        assert active.ready()["ready"] is False, "from the first moment on"
        assert "error" in active.ask()
        for thread in asking:
            thread.join()
        served = [answer for answer in answers if answer.get("choices")]
        refused = [answer["error"] for answer in answers if "error" in answer]
        assert len(served) == 1, "the one that ran is answered to its end"
        assert all("another one is active" in str(error) for error in refused)
        assert len(refused) == 2
        until(lambda: any("stands by" in line for line in active.told))
        os.kill(passive.process.pid, signal.SIGKILL)
        until(lambda: active.serves)


def test_never_both_serve_while_they_fight(tmp_path: Path) -> None:
    """The holder is paused again and again, for longer than its lease."""
    with gateways(tmp_path, 3) as everyone:
        active_of(everyone)
        for _ in range(3):
            serving_now = [one for one in everyone if one.serves]
            assert len(serving_now) == 1
            paused = serving_now[0]
            os.kill(paused.process.pid, signal.SIGSTOP)
            others = [one for one in everyone if one is not paused]
            until(lambda others=others: any(one.serves for one in others))
            os.kill(paused.process.pid, signal.SIGCONT)
            assert sum(one.serves for one in everyone) <= 1


def test_without_its_file_system_a_gateway_does_not_serve(tmp_path: Path) -> None:
    settings, file = tmp_path / "gateway.toml", tmp_path / "lease"
    settings.write_text(f'lease = {{file = "{file}", seconds = {SECONDS}}}\n')
    with serving("--config", settings) as (process, url):
        one = GatewayProcess(process, url)
        until(lambda: one.serves)
        file.unlink()
        file.mkdir()  # it can be neither read nor written
        until(lambda: not one.serves)
        until(lambda: any("cannot be renewed" in line and "Is a directory" in line for line in one.told))
        file.rmdir()
        until(lambda: one.serves)


@contextmanager
def api_server(folder: Path) -> Iterator[tuple[KubernetesServer, str]]:
    """Runs in a thread, because the tests wait for processes; yields it and a kubeconfig."""
    from tests.support.kubernetes_server import KubernetesServer  # needs the extra

    loop, server = asyncio.new_event_loop(), KubernetesServer()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server.objects[LEASES] = {}
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(SOON)
    try:
        yield server, server.kubeconfig(folder)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(SOON)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_two_fight_for_a_lease_of_kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kubernetes_asyncio", reason="the extra `kubernetes` is not installed")
    with api_server(tmp_path) as (server, kubeconfig):
        monkeypatch.setenv("KUBECONFIG", kubeconfig)
        with gateways(tmp_path, lease='kubernetes = "default/headway"') as both:
            active = active_of(both)
            passive = other_of(both, active)
            holder = server.objects[LEASES]["headway"]["spec"]["holderIdentity"]
            assert f"-{active.process.pid}-" in holder
            os.kill(active.process.pid, signal.SIGSTOP)
            until(lambda: passive.serves)
            os.kill(active.process.pid, signal.SIGCONT)
            assert not active.serves
            os.kill(passive.process.pid, signal.SIGKILL)
            until(lambda: active.serves)
            tokens = set(server.tokens)
            server.tokens.clear()  # it may not renew any more
            until(lambda: not active.serves)
            server.tokens |= tokens
            until(lambda: active.serves)


@pytest.mark.parametrize(
    ("lease", "sentence"),
    [
        ('{file = "a", kubernetes = "b/c"}', "lease: file and kubernetes exclude each other; leave one out"),
        ('{file = "a", seconds = 1}', "lease.seconds must be from 3 to 300, got 1"),
        ('{kubernetes = "only-a-name"}', "lease.kubernetes must be NAMESPACE/NAME, in small letters"),
        ('{file = "/no/such/folder/x"}', "lease.file: there is no folder '/no/such/folder'; make it first"),
    ],
)
def test_a_lease_that_makes_no_sense_is_one_sentence(tmp_path: Path, lease: str, sentence: str) -> None:
    file = tmp_path / "gateway.toml"
    file.write_text(f"lease = {lease}\n")
    with pytest.raises(ValueError, match=sentence.replace("/", "."), check=lambda error: sentence in str(error)):
        read_settings(file)
