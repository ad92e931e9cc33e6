"""Checks on a real Ray Serve, run by an interpreter that has Ray: `ray_checks.py PLACE`. One cluster for all of them.

Prints one JSON line a check: its name and what went wrong, "" if nothing did.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve
from ray.serve.exceptions import BackPressureError
from served_app import KEY, Held, HeldBehind, Ingress

from headway.ray.deployment_options import queued
from headway.ray.queue_actor import NAMESPACE, figures_of, queue_name
from headway.ray.queue_refusal import QueueRefusal

SHORTEST_FIRST = {"policies": {"ordering": "shortest-prompt-first"}}
_LONGEST_SECONDS = 120.0
_PICKLING = threading.Lock()  # Ray pickles a router's module by a setting of the whole process
_AT_ONCE = 3  # applications: mostly they wait for processes that start


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(holds: Callable[[], bool], what: str) -> None:
    began = time.monotonic()
    while not _holds(holds):
        if time.monotonic() - began > _LONGEST_SECONDS:
            raise AssertionError(f"it never came to hold: {what}")
        time.sleep(0.02)


def _holds(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except (ValueError, ray.exceptions.RayActorError):  # there is no queue now
        return False


class Day:
    """One application, its files, and threads that send."""

    def __init__(self, place: Path, port: int, name: str, deployment: str = "Held") -> None:
        self.place = place / name
        self.place.mkdir()
        self.name, self.deployment = name, deployment
        self.url = f"http://127.0.0.1:{port}/{name}"
        self.client = httpx.Client(timeout=_LONGEST_SECONDS)
        self.threads = ThreadPoolExecutor(32)
        self.handle: Any = None

    def serve(self, settings: dict[str, Any], replicas: int = 1, **options: Any) -> Day:
        with _PICKLING:
            router = queued(settings, **options.pop("queued", {}))
        chosen = {"max_ongoing_requests": 1, "num_replicas": replicas, "graceful_shutdown_timeout_s": 20} | options
        if "autoscaling_config" in options:
            del chosen["num_replicas"]
        app = Held.options(**router, **chosen).bind(str(self.place))
        self.handle = serve.run(app, name=self.name, route_prefix=f"/{self.name}")
        return self

    def post(self, name: str, size: int = 10, **headers: str) -> httpx.Response:
        body = json.dumps({"name": name, "prompt": "x" * size})
        return self.client.post(self.url, content=body, headers=headers)

    def posting(self, name: str, size: int = 10, **headers: str) -> Future[httpx.Response]:
        return self.threads.submit(self.post, name, size, **headers)

    def calling(self, name: str, size: int = 10, **more: Any) -> Future[Any]:
        return self.threads.submit(self.handle.remote({"name": name, "prompt": "x" * size, **more}).result)

    def let(self, *names: str) -> None:
        for name in names:
            (self.place / f"go-{name}").touch()

    def let_all(self) -> None:
        (self.place / "go").touch()

    @property
    def order(self) -> list[str]:
        file = self.place / "order"
        return file.read_text().split() if file.exists() else []

    @property
    def figures(self) -> dict[str, Any]:
        return figures_of(self.name, self.deployment)

    def until_waiting(self, number: int) -> None:
        until(lambda: self.figures["waiting"] == number, f"{number} waiting")

    def until_idle(self) -> None:
        until(lambda: self.figures["inside"] == 0, "none inside")

    def end(self) -> None:
        self.let_all()
        self.threads.shutdown(wait=True)
        serve.delete(self.name)


@contextmanager
def day(place: Path, port: int, name: str, deployment: str = "Held") -> Iterator[Day]:
    one = Day(place, port, name, deployment)
    try:
        yield one
    finally:
        one.end()


def hold(one: Day) -> Future[Any]:
    """A request that occupies the only replica."""
    holding = one.calling("hold")
    until(lambda: "hold" in one.order, "the first request runs")
    return holding


# The checks


def order_across_proxy_and_handle(place: Path, port: int) -> None:
    """The shortest waiting request goes first, whichever of two routers it came to."""
    with day(place, port, "order") as one:
        one.serve(SHORTEST_FIRST)
        hold(one)
        sent = [one.posting("p4000", 4_000), one.calling("h3000", 3_000)]
        one.until_waiting(2)
        sent += [
            one.posting("p500", 500),
            one.calling("h20", 20),
            one.posting("p1500", 1_500),
            one.calling("h900", 900),
        ]
        one.until_waiting(6)
        assert one.figures["routers"] == 2, one.figures
        one.let_all()
        for future in sent:
            future.result()
        assert one.order == ["hold", "h20", "p500", "h900", "p1500", "h3000", "p4000"], one.order
        one.until_idle()


def refusal_over_http(place: Path, port: int) -> None:
    """A full queue is 429 with Retry-After for HTTP, and an exception with both for a handle."""
    with day(place, port, "refusal") as one:
        one.serve({"queue": {"max_requests": 1}})
        hold(one)
        waiting = one.posting("waits")
        one.until_waiting(1)
        refused = one.post("refused")
        assert refused.status_code == 429, refused
        assert int(refused.headers["retry-after"]) >= 1, refused.headers
        assert "queue" in refused.text, refused.text
        error = one.calling("refused").exception()
        assert isinstance(error, QueueRefusal), error
        assert isinstance(error, BackPressureError), error
        assert error.status_code == 429, error
        assert error.retry_after_s > 0, error
        assert error.reason == "queue-full", error
        one.let_all()
        assert waiting.result().status_code == 200
        assert "refused" not in one.order, one.order
        assert one.figures["reasons"] == {"queue-full": 2}, one.figures


def refusal_behind_an_ingress(place: Path, port: int) -> None:
    """The same where an ingress deployment calls the handle, by settings of a file: status and header arrive."""
    with day(place, port, "ingress", "HeldBehind") as one:
        settings = one.place / "queue.toml"
        settings.write_text('[policies]\nordering = "shortest-prompt-first"\n[queue]\nmax_requests = 2\n')
        with _PICKLING:
            router = queued(settings)
        options = {"max_ongoing_requests": 1, **router}
        app = Ingress.bind(HeldBehind.options(**options).bind(str(one.place)))
        serve.run(app, name=one.name, route_prefix=f"/{one.name}")
        sent = [one.posting("hold")]
        until(lambda: "hold" in one.order, "the first request runs")
        sent.append(one.posting("long", 3_000))
        one.until_waiting(1)
        sent.append(one.posting("short", 10))
        one.until_waiting(2)
        refused = one.post("refused")
        assert refused.status_code == 429, refused
        assert int(refused.headers["retry-after"]) >= 1, refused.headers
        one.let_all()
        assert [future.result().status_code for future in sent] == [200] * 3
        assert one.order == ["hold", "short", "long"], one.order


def deadlines_and_keys(place: Path, port: int) -> None:
    """A deadline that passes in the queue is 429; a request without a key is refused."""
    with day(place, port, "deadlines") as one:
        tenant = {"name": "team-a", "key_sha256": hashlib.sha256(KEY.encode()).hexdigest(), "may": ["deadline"]}
        one.serve({"tenant": [tenant]}, queued={"describe": "served_app:describe"})
        hold_key = {"Authorization": f"Bearer {KEY}"}
        holding = one.posting("hold", **hold_key)
        until(lambda: "hold" in one.order, "the first request runs")
        late = one.post("late", **hold_key, **{"x-slo-ttft-ms": "300"})
        assert (late.status_code, "first token" in late.text) == (429, True), late.text
        stranger = one.post("stranger")
        assert stranger.status_code == 500, stranger  # Ray's proxy passes no refusal on but 408, 429 and 503
        error = one.calling("stranger").exception()
        assert (error.status_code, error.reason) == (401, "unauthorised"), error
        called = one.calling("called", facts={"tenant": "team-a", "deadline_seconds": 0.3})
        error = called.exception()
        assert isinstance(error, BackPressureError), error
        assert error.reason == "deadline-unmeetable", error
        one.let_all()
        assert holding.result().status_code == 200
        assert one.order == ["hold"], one.order


def client_gone_while_queued(place: Path, port: int) -> None:
    """A client that leaves, of HTTP or of a handle, is out of the queue, and its request never runs."""
    with day(place, port, "gone") as one:
        one.serve({})
        hold(one)
        body = json.dumps({"name": "gone", "prompt": ""}).encode()
        head = f"POST /gone HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head.encode() + body)
            one.until_waiting(1)
        one.until_waiting(0)
        response = one.handle.remote({"name": "gone", "prompt": ""})
        one.until_waiting(1)
        response.cancel()
        one.until_waiting(0)
        one.let_all()
        assert one.post("after").status_code == 200
        assert one.order == ["hold", "after"], one.order
        one.until_idle()
        assert one.figures["ended"] == {"completed": 2, "cancelled": 2}, one.figures


def streams(place: Path, port: int) -> None:
    """Streams over HTTP and a handle keep their place until their end."""
    with day(place, port, "streams") as one:
        one.serve({})
        streamed = one.handle.options(stream=True, method_name="streamed")
        parts = one.threads.submit(lambda: list(streamed.remote({"name": "first", "prompt": ""})))
        until(lambda: "first" in one.order, "the first stream runs")
        body = json.dumps({"name": "second", "prompt": "", "stream": True})
        over_http = one.threads.submit(one.client.post, one.url, content=body)
        one.until_waiting(1)
        one.let_all()
        assert parts.result() == ["data: 0\n\n", "data: 1\n\n", "data: 2\n\n"]
        assert over_http.result().text == "".join(parts.result())
        one.until_idle()


def replica_killed(place: Path, port: int) -> None:
    """The place of a request whose replica is killed is free, the others go on, and its successor gets requests."""
    with day(place, port, "killed") as one:
        one.serve({}, replicas=2)
        first = one.calling("a")
        until(lambda: "a" in one.order, "a runs")
        one.calling("b")
        until(lambda: "b" in one.order, "b runs")
        waiting = [one.calling(f"w{number}") for number in range(4)]
        one.until_waiting(4)
        before = set(one.figures["replicas"])
        one.let("a")
        pid = first.result()["pid"]
        until(lambda: len(one.order) == 3, "the next runs where a ran")
        victim = next(
            future for future, name in zip(waiting, ("w0", "w1", "w2", "w3"), strict=True) if name in one.order
        )
        os.kill(pid, signal.SIGKILL)
        assert victim.exception() is not None, "the request at the killed replica has to fail"
        one.let_all()
        served = [future for future in waiting if future.exception() is None]
        assert len(served) == 3, [future.exception() for future in waiting]
        until(lambda: len(one.figures["replicas"]) == 2 and set(one.figures["replicas"]) != before, "a successor")
        one.until_idle()
        assert one.calling("after").result()["name"] == "after"


def actor_killed(place: Path, port: int) -> None:
    """What waits goes on without order, and order holds again when the actor is back."""
    with day(place, port, "actor") as one:
        one.serve(SHORTEST_FIRST)
        hold(one)
        waiting = [one.calling(f"w{number}") for number in range(3)] + [one.posting("proxied")]
        one.until_waiting(4)
        actor = ray.get_actor(queue_name(one.name, "Held"), namespace=NAMESPACE)
        ray.kill(actor)
        time.sleep(0.2)
        one.let_all()
        assert [future.result() is not None for future in waiting] == [True] * 4
        (one.place / "go").unlink()
        until(lambda: one.figures["routers"] == 2 and one.figures["inside"] == 0, "both routers are back")
        hold_again = one.calling("hold-again")
        until(lambda: "hold-again" in one.order, "it runs")
        sent = [one.calling("long", 3_000), one.posting("short", 10)]
        one.until_waiting(2)
        one.let_all()
        assert [future.result() is not None for future in (hold_again, *sent)] == [True] * 3
        assert one.order[-2:] == ["short", "long"], one.order


def scaled_up_and_down(place: Path, port: int) -> None:
    """What waits in the queue makes Ray scale up; new replicas get it, and those that go are sent nothing."""
    quick = {"upscale_delay_s": 0.2, "downscale_delay_s": 0.5, "metrics_interval_s": 0.2, "look_back_period_s": 0.5}
    scaling = {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 1.0, **quick}
    with day(place, port, "scaled") as one:
        one.serve({}, autoscaling_config=scaling)
        hold(one)
        waiting = [one.calling(f"w{number}") for number in range(4)]
        until(lambda: len(one.figures["replicas"]) == 3, "three replicas")
        one.until_waiting(2)
        one.let_all()
        assert [future.result()["name"] for future in waiting] == ["w0", "w1", "w2", "w3"]
        until(lambda: len(one.figures["replicas"]) == 1, "one replica is left")
        assert one.post("after").status_code == 200
        one.until_idle()


def deployed_again(place: Path, port: int) -> None:
    """A new version replaces the replicas: what waits goes on to the new ones, and none is lost."""
    with day(place, port, "again") as one:
        one.serve({})
        holding = hold(one)
        waiting = [one.calling(f"w{number}") for number in range(3)]
        one.until_waiting(3)
        before = set(one.figures["replicas"])
        one.threads.submit(one.serve, {})
        until(lambda: one.figures["waiting"] == 2, "a new replica takes one while the old one drains")
        one.let_all()
        assert holding.result()["name"] == "hold"
        assert [future.result()["name"] for future in waiting] == ["w0", "w1", "w2"]
        until(lambda: len(one.figures["replicas"]) == 1 and set(one.figures["replicas"]) != before, "only the new one")
        one.until_idle()


def unused_actor_ends(place: Path, port: int) -> None:
    """After its last router has gone the actor ends by itself."""
    one = Day(place, port, "unused")
    one.serve({"ray": {"idle_seconds": 1.0, "router_seconds": 2.0}})
    one.let_all()
    assert one.post("x").status_code == 200  # the proxy's router, which ends with its application
    name = queue_name(one.name, "Held")
    ray.get_actor(name, namespace=NAMESPACE)
    one.end()

    def is_gone() -> bool:
        try:
            ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return True
        return False

    until(is_gone, "the actor ended")


def ranks_where_the_method_is_missing(place: Path, port: int) -> None:
    """A Ray without the method: replicas are ranked by the public one, and the log says so. The last check."""
    from ray.serve.request_router import RequestRouter

    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("ray.serve.headway").addHandler(handler)
    method = RequestRouter._choose_replica_for_request
    del RequestRouter._choose_replica_for_request
    sys.modules.pop("headway.ray.queued_router", None)
    import headway.ray.queued_router as without

    RequestRouter._choose_replica_for_request = method  # what Ray calls by another name then
    assert not without.HOLDS_ORDER
    assert "_choose_replica_for_request" not in vars(without.QueuedRouter)
    with day(place, port, "ranked") as one:
        one.let_all()
        one.serve(SHORTEST_FIRST, replicas=2)
        assert one.calling("a").result()["name"] == "a"
        assert sum("replicas are ranked" in line for line in lines) == 1, lines
        try:
            figures = one.figures
        except ValueError:
            return
        raise AssertionError(f"the queue was asked: {figures}")


CHECKS = [
    order_across_proxy_and_handle,
    refusal_over_http,
    refusal_behind_an_ingress,
    deadlines_and_keys,
    client_gone_while_queued,
    streams,
    replica_killed,
    actor_killed,
    scaled_up_and_down,
    deployed_again,
    unused_actor_ends,
    ranks_where_the_method_is_missing,
]


def outcome(check: Callable[[Path, int], None], place: Path, port: int) -> str:
    """Run a check; the line that tells of it."""
    began, wrong = time.monotonic(), ""
    try:
        check(place, port)
    except BaseException:
        wrong = traceback.format_exc()
    return json.dumps({"check": check.__name__, "wrong": wrong, "seconds": round(time.monotonic() - began, 1)})


def main() -> None:
    place, port = Path(sys.argv[1]), free_port()
    wanted = sys.argv[2:]
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=80_000_000,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        together = [check for check in CHECKS if check.__name__ in wanted or not wanted]
        last = [together.pop()] if together[-1] is CHECKS[-1] else []  # it changes Ray for this process
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            for line in threads.map(lambda check: outcome(check, place, port), together):
                print(line, flush=True)
        for check in last:
            print(outcome(check, place, port), flush=True)
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
