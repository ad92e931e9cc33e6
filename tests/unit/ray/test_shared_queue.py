"""The queue of a Ray Serve deployment: order across routers, room, refusal, and what becomes of routers that go."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.gateway.queueing.counts import Outcome
from headway.gateway.wire.messages import HttpRequest
from headway.ray import shared_queue
from headway.ray.queue_client import QueueLost, RequestRefused, Ticket
from headway.ray.queue_messages import (
    End,
    Greeting,
    LostKind,
    QueueEntry,
    Rejection,
    RequestFacts,
    RouterNews,
    ServeReplica,
)
from tests.support.ray_queue import QueueHouse, prompt_of, replicas, until

SHORTEST_FIRST = {"policies": {"ordering": "smallest-volume-first"}}


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def test_the_shortest_of_two_routers_goes_first() -> None:
    async def test() -> None:
        house = QueueHouse(SHORTEST_FIRST)
        first, second = house.router("first"), house.router("second")
        for router in (first, second):
            router.list_replicas(replicas("only"))
        running = await first.choose(prompt_of(10))
        order: list[int] = []

        async def send(router: Any, tokens: int) -> None:
            ticket = await router.choose(prompt_of(tokens))
            order.append(tokens)
            router.ended(ticket)

        long = [asyncio.ensure_future(send(first, tokens)) for tokens in (9_000, 8_000)]
        await until(lambda: house.queue.figures()["waiting"] == 2)
        short = [asyncio.ensure_future(send(second, tokens)) for tokens in (300, 20)]
        await until(lambda: house.queue.figures()["waiting"] == 4)
        first.ended(running)
        await asyncio.gather(*long, *short)
        assert order == [20, 300, 8_000, 9_000]
        assert house.queue.dispatcher.counts.is_conserved()

    run(test())


def test_a_replica_has_no_more_requests_than_it_takes_whichever_router_sends_them() -> None:
    async def test() -> None:
        house = QueueHouse()
        routers = [house.router(str(number)) for number in range(3)]
        for router in routers:
            router.list_replicas(replicas("a", "b", requests_max=2))
        tickets: list[tuple[int, Ticket]] = []

        async def send(number: int) -> None:
            tickets.append((number, await routers[number % 3].choose(prompt_of(10))))

        sending = [asyncio.ensure_future(send(number)) for number in range(9)]
        await until(lambda: house.queue.figures()["waiting"] == 5 and len(tickets) == 4)
        assert sorted(ticket.replica for _, ticket in tickets) == ["a", "a", "b", "b"]
        for _ in range(9):
            await until(lambda: bool(tickets))
            number, ticket = tickets.pop()
            routers[number % 3].ended(ticket)
        await asyncio.gather(*sending)
        await until(lambda: house.queue.figures()["inside"] == 0)

    run(test())


def test_a_client_that_leaves_while_it_waits_is_out_of_the_queue() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("only"))
        ticket = await router.choose(prompt_of(10))
        waiting = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        waiting.cancel()
        await until(lambda: house.queue.figures()["waiting"] == 0)
        router.ended(ticket)
        await until(lambda: house.queue.figures()["inside"] == 0)
        assert house.queue.figures()["ended"] == {"cancelled": 1, "completed": 1}

    run(test())


def test_a_client_that_leaves_as_its_verdict_comes_gives_its_place_back() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("only"))
        choosing = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["inside"] == 1)  # it is dispatched, and its router does not know yet
        choosing.cancel()
        await until(lambda: house.queue.figures()["inside"] == 0)
        router.ended(await router.choose(prompt_of(10)))

    run(test())


def test_a_full_queue_refuses_with_a_time_to_retry() -> None:
    async def test() -> None:
        house = QueueHouse({"queue": {"max_requests": 1}})
        router = house.router()
        router.list_replicas(replicas("only"))
        await router.choose(prompt_of(10))
        waiting = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        with pytest.raises(RequestRefused) as refused:
            await router.choose(prompt_of(10))
        refusal = refused.value.refusal
        assert (refusal.status, refusal.reason) == (429, "queue-full")
        assert refusal.retry_seconds is not None
        assert refusal.retry_seconds > 0
        waiting.cancel()

    run(test())


def test_a_deadline_that_passes_in_the_queue_refuses() -> None:
    async def test() -> None:
        now = 0.0
        house = QueueHouse(clock=lambda: now)
        router = house.router()
        router.list_replicas(replicas("only"))
        await router.choose(prompt_of(10))
        late = prompt_of(10, headers=[(b"x-slo-ttft-ms", b"500")], tenant="a", is_trusted=True)
        waiting = asyncio.ensure_future(router.choose(late))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        now = 1.0
        await house.queue.sweep(now)
        with pytest.raises(RequestRefused) as refused:
            await waiting
        assert refused.value.refusal.reason == "deadline-unmeetable"

    run(test())


def test_a_hint_of_a_client_without_a_key_counts_for_nothing() -> None:
    async def test() -> None:
        house = QueueHouse({"policies": {"ordering": "priority"}})
        router = house.router()
        router.list_replicas(replicas("only"))
        running = await router.choose(prompt_of(10))
        plain = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        pushy = [(b"x-request-priority", b"-100")]
        pushing = asyncio.ensure_future(router.choose(prompt_of(10, headers=pushy)))
        trusted = asyncio.ensure_future(router.choose(prompt_of(10, headers=pushy, is_trusted=True)))
        await until(lambda: house.queue.figures()["waiting"] == 3)
        for expected in (trusted, plain, pushing):
            router.ended(running)
            running = await expected

    run(test())


def test_a_tenant_of_one_router_is_not_kept_waiting_by_the_many_of_another() -> None:
    async def test() -> None:
        house = QueueHouse({"policies": {"ordering": "fair-share/fcfs"}})
        many, few = house.router("many"), house.router("few")
        for router in (many, few):
            router.list_replicas(replicas("only"))
        running = await many.choose(prompt_of(10))
        order: list[str] = []

        async def send(router: Any, tenant: str) -> None:
            ticket = await router.choose(prompt_of(100, tenant=tenant, is_trusted=True))
            order.append(tenant)
            router.ended(ticket)

        sent = [asyncio.ensure_future(send(many, "greedy")) for _ in range(8)]
        await until(lambda: house.queue.figures()["waiting"] == 8)
        sent += [asyncio.ensure_future(send(few, "modest")) for _ in range(2)]
        await until(lambda: house.queue.figures()["waiting"] == 10)
        many.ended(running)
        await asyncio.gather(*sent)
        assert order.index("modest") <= 1
        assert order[:4].count("modest") == 2

    run(test())


def test_tenants_need_their_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "a-key-of-team-a")

    async def test() -> None:
        house = QueueHouse({"tenant": [{"name": "team-a", "key_env": "TEST_KEY"}]})
        router = house.router()
        router.list_replicas(replicas("only", requests_max=9))
        with pytest.raises(RequestRefused) as refused:
            await router.choose(prompt_of(10))
        assert refused.value.refusal.status == 401
        await router.choose(prompt_of(10, headers=[(b"authorization", b"Bearer a-key-of-team-a")]))
        await router.choose(prompt_of(10, tenant="team-a", is_trusted=True))

    run(test())


def test_a_term_that_makes_no_sense_is_refused_in_one_sentence() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("only"))
        with pytest.raises(RequestRefused) as refused:
            await router.choose(prompt_of(10, headers=[(b"x-headway-timeout-seconds", b"soon")]))
        assert refused.value.refusal.status == 400

    run(test())


def test_a_request_that_its_replica_rejects_waits_in_front_for_the_next_room() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("a", "b", requests_max=1))
        first = await router.choose(prompt_of(10))
        second = await router.choose(prompt_of(10))
        behind = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        again = asyncio.ensure_future(router.choose_again(first, prompt_of(10), 1))
        await asyncio.sleep(0.01)
        ticket = await again  # an empty replica takes one, whatever it reported
        assert ticket.number == first.number
        router.ended(second)
        router.ended(await behind)

    run(test())


def test_a_rejected_request_that_a_new_queue_does_not_know_enters_it() -> None:
    house = QueueHouse()
    house.queue.greet(Greeting("router", replicas("only"), [(7, "only")]))
    verdicts = house.queue.take(RouterNews("router", rejected=[Rejection(7, 1, prompt_of(10))]))
    assert verdicts is not None
    assert [(one.number, one.replica) for one in verdicts] == [(7, "only")]
    assert house.queue.figures()["replicas"] == {
        "only": {"requests": 1, "requests_max": 1, "elsewhere": 0, "is_up": True}
    }


def test_what_runs_at_a_replica_from_before_takes_its_room() -> None:
    house = QueueHouse()
    house.queue.greet(Greeting("router", replicas("only", requests_max=3), [(1, "only"), (2, "only")]))
    told = house.queue.take(RouterNews("router", [QueueEntry(number, prompt_of(10)) for number in (3, 4, 5)]))
    assert told is not None
    assert [one.number for one in told] == [3]
    told = house.queue.take(RouterNews("router", ended=[End(1, Outcome.COMPLETED)]))
    assert told is not None
    assert [one.number for one in told] == [4]


def test_a_replica_that_died_is_sent_nothing_though_another_router_lists_it() -> None:
    house = QueueHouse()
    for name in ("first", "second"):
        house.queue.greet(Greeting(name, replicas("a", "b")))
    house.queue.take(RouterNews("first", lost=[("a", LostKind.DIED)]))
    verdicts = house.queue.take(RouterNews("second", [QueueEntry(1, prompt_of(10)), QueueEntry(2, prompt_of(10))]))
    assert verdicts is not None
    assert [one.replica for one in verdicts] == ["b"]
    house.queue.take(RouterNews("first", replicas=replicas("b", "c")))
    assert house.queue.wait is not None
    assert sorted(house.queue.figures()["replicas"]) == ["b", "c"]  # type: ignore[call-overload]


def test_a_replica_that_cannot_be_reached_is_left_alone_for_a_while() -> None:
    async def test() -> None:
        now = 0.0
        house = QueueHouse(clock=lambda: now)
        house.queue.greet(Greeting("router", replicas("a", "b")))
        house.queue.take(RouterNews("router", lost=[("a", LostKind.UNAVAILABLE)]))
        told = house.queue.take(RouterNews("router", [QueueEntry(1, prompt_of(10)), QueueEntry(2, prompt_of(10))]))
        assert told is not None
        assert [one.replica for one in told] == ["b"]
        now = 3.0  # health.eject_seconds is 2
        await house.queue.sweep(now)
        told = house.queue.take(RouterNews("router"))
        assert told is not None
        assert [one.replica for one in told] == ["a"]

    run(test())


def test_a_new_replica_gets_what_waits_and_one_that_goes_gets_no_more() -> None:
    house = QueueHouse()
    house.queue.greet(Greeting("router", replicas("a")))
    told = house.queue.take(RouterNews("router", [QueueEntry(number, prompt_of(10)) for number in range(1, 4)]))
    assert told is not None
    assert [one.replica for one in told] == ["a"]
    told = house.queue.take(RouterNews("router", replicas=[*replicas("a"), *replicas("b")]))
    assert told is not None
    assert [one.replica for one in told] == ["b"]
    told = house.queue.take(RouterNews("router", replicas=replicas("b"), ended=[End(1, Outcome.COMPLETED)]))  # type: ignore[list-item]
    assert told == []
    told = house.queue.take(RouterNews("router", ended=[End(2, Outcome.COMPLETED)]))  # type: ignore[list-item]
    assert told is not None
    assert [one.replica for one in told] == ["b"]


def test_more_room_at_a_replica_is_used_at_once() -> None:
    house = QueueHouse()
    house.queue.greet(Greeting("router", [ServeReplica("a", 1)]))
    house.queue.take(RouterNews("router", [QueueEntry(1, prompt_of(10)), QueueEntry(2, prompt_of(10))]))
    told = house.queue.take(RouterNews("router", replicas=[ServeReplica("a", 2)]))
    assert told is not None
    assert [one.number for one in told] == [2]


def test_a_silent_router_leaves_nothing_behind() -> None:
    async def test() -> None:
        now = 0.0
        house = QueueHouse(clock=lambda: now)
        house.queue.greet(Greeting("silent", replicas("a"), [(9, "a")]))
        house.queue.take(RouterNews("silent", ended=[End(9, Outcome.COMPLETED)]))  # type: ignore[list-item]
        house.queue.take(RouterNews("silent", [QueueEntry(1, prompt_of(10)), QueueEntry(2, prompt_of(10))]))
        now = 10.0
        house.queue.greet(Greeting("alive", replicas("a")))
        house.queue.take(RouterNews("alive", [QueueEntry(1, prompt_of(10))]))
        assert house.queue.figures()["inside"] == 3
        now = 16.0  # ray.router_seconds is 15
        await house.queue.sweep(now)
        figures = house.queue.figures()
        assert (figures["routers"], figures["inside"], figures["waiting"]) == (1, 1, 0)
        assert house.queue.take(RouterNews("silent")) is None
        assert await house.queue.wait("silent", 0.0) is None
        told = house.queue.take(RouterNews("alive"))
        assert told is not None
        assert [one.replica for one in told] == ["a"]

    run(test())


def test_a_lost_queue_lets_requests_go_on_and_counts_what_runs_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("headway.ray.queue_client.AGAIN_SECONDS", 0.01)
    caplog.set_level("INFO", "ray.serve.headway")

    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("only", requests_max=3))
        kept = [await router.choose(prompt_of(10)) for _ in range(2)]
        await router.choose(prompt_of(10))
        waiting = asyncio.ensure_future(router.choose(prompt_of(10)))
        await until(lambda: house.queue.figures()["waiting"] == 1)
        house.is_reachable = False
        house.end.is_dead = True
        with pytest.raises(QueueLost):
            await waiting
        with pytest.raises(QueueLost):
            await router.choose(prompt_of(10))
        assert "order, fairness, deadlines and refusal do not hold" in caplog.text
        router.ended(kept[0])
        ranked = router.begun_elsewhere("only")
        house.begin()
        house.is_reachable = True
        await until(lambda: not router.is_lost)
        assert "order holds again" in caplog.text
        assert house.queue.figures()["replicas"]["only"]["elsewhere"] == 3  # type: ignore[index]
        for ticket in (kept[1], ranked):
            router.ended(ticket)
        ticket = await router.choose(prompt_of(10))
        assert ticket.replica == "only"
        await until(lambda: house.queue.figures()["replicas"]["only"]["elsewhere"] == 1)  # type: ignore[index]
        router.close()

    run(test())


def test_a_queue_that_hangs_is_lost_within_its_time() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router(answer_seconds=0.05)
        router.list_replicas(replicas("only"))
        router.ended(await router.choose(prompt_of(10)))
        house.end.hangs = True
        with pytest.raises(QueueLost):
            await router.choose(prompt_of(10))
        router.close()

    run(test())


def test_what_ends_while_the_queue_is_lost_is_not_kept() -> None:
    async def test() -> None:
        house = QueueHouse()
        house.is_reachable = False
        router = house.router()
        for _ in range(100):
            router.ended(router.begun_elsewhere("only"))
            router.lose("only", LostKind.UNAVAILABLE)
        assert not router._ended
        assert not router._lost
        assert not router._running

    run(test())


def test_under_load_calls_get_larger_and_not_more() -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router()
        router.list_replicas(replicas("only", requests_max=100))
        router.ended(await router.choose(prompt_of(10)))
        before = house.end.calls
        for ticket in await asyncio.gather(*(router.choose(prompt_of(10)) for _ in range(100))):
            router.ended(ticket)
        await until(lambda: house.queue.figures()["inside"] == 0)
        assert house.end.calls - before <= 4

    run(test())


def test_a_verdict_that_comes_with_an_answer_wakes_no_call_that_waits() -> None:
    async def test() -> None:
        house = QueueHouse()
        house.queue.greet(Greeting("router", replicas("only")))
        waiting = asyncio.ensure_future(house.queue.wait("router", 30.0))
        await asyncio.sleep(0)
        told = house.queue.take(RouterNews("router", [QueueEntry(1, prompt_of(10)), QueueEntry(2, prompt_of(10))]))
        assert told is not None
        assert [one.number for one in told] == [1]
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        house.queue.greet(Greeting("other", replicas("more")))  # a replica that has room for what waits
        assert [one.number for one in await waiting or ()] == [2]

    run(test())


moves = st.lists(
    st.tuples(
        st.sampled_from(["enter", "end", "reject", "leave", "die", "scale", "greet"]),
        st.integers(0, 1),
        st.integers(0, 30),
    ),
    max_size=60,
)


@given(moves)
def test_whatever_happens_no_request_is_lost_and_no_replica_has_too_many(moves: list[tuple[str, int, int]]) -> None:
    """Two routers, each with its own idea of what runs, in any order of news."""

    async def test() -> None:  # noqa: PLR0912 - one branch a move
        house = QueueHouse({"queue": {"max_requests": 10}})
        queue, room, number = house.queue, 2, 0
        names = ["a", "b"]
        inside: list[dict[int, str]] = [{}, {}]  # by router: number -> replica; "" while it waits
        for router in ("0", "1"):
            queue.greet(Greeting(router, replicas(*names, requests_max=room)))
        for move, who, which in moves:
            known, news = inside[who], RouterNews(str(who))
            chosen = sorted(known)[which % len(known)] if known else None
            if move == "enter":
                number += 1
                known[number] = ""
                news = news._replace(entered=[QueueEntry(number, prompt_of(which + 1))])
            elif move in ("end", "leave") and chosen is not None:
                news = news._replace(ended=[End(chosen, Outcome.COMPLETED if known[chosen] else Outcome.CANCELLED)])
                del known[chosen]
            elif move == "reject" and chosen is not None and known[chosen]:
                known[chosen] = ""
                news = news._replace(rejected=[Rejection(chosen, which % 4, RequestFacts())])
            elif move == "die":
                news = news._replace(lost=[(names[which % len(names)], LostKind(["died", "unavailable"][which % 2]))])
            elif move == "scale":
                names = ["a", "b", f"c{which}"][which % 2 :]
                news = news._replace(replicas=replicas(*names, requests_max=room))
            elif move == "greet":
                queue.greet(
                    Greeting(
                        str(who),
                        replicas(*names, requests_max=room),
                        [(one, replica) for one, replica in known.items() if replica],
                    )
                )
                inside[who] = known = {one: replica for one, replica in known.items() if replica}
            for router in range(2):
                told = queue.take(news if router == who else RouterNews(str(router)))
                assert told is not None
                for verdict in told:
                    if verdict.refusal is None:
                        assert inside[router].get(verdict.number) == "", "a verdict that no one waits for"
                        inside[router][verdict.number] = verdict.replica
                    else:
                        del inside[router][verdict.number]
            counts = queue.dispatcher.counts
            assert counts.is_conserved()
            assert not queue.figures()["errors"]
            for replica in queue.dispatcher.replicas:
                assert replica.ledger.requests <= room
        for router in range(2):
            queue.take(RouterNews(str(router), ended=[End(one, Outcome.CANCELLED) for one in inside[router]]))
        assert queue.dispatcher.counts.inside == 0
        await asyncio.sleep(0)

    run(test())


def test_a_fault_at_one_request_ends_no_other_of_its_router(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        house = QueueHouse()
        router = house.router("only")
        router.list_replicas(replicas("a", "b", "c"))
        await router.choose(prompt_of(10))
        read_terms = shared_queue.read_terms

        def fails_at_one(http: HttpRequest, body: Any) -> Any:
            if http.named.get(b"x-request-id") == b"fault":
                raise ZeroDivisionError
            return read_terms(http, body)

        monkeypatch.setattr(shared_queue, "read_terms", fails_at_one)
        bad = prompt_of(20)._replace(headers=[(b"x-request-id", b"fault")])
        chosen = await asyncio.gather(
            *(router.choose(one) for one in (prompt_of(30), bad, prompt_of(40))), return_exceptions=True
        )
        assert [type(one) for one in chosen] == [Ticket, RequestRefused, Ticket]
        assert not router.is_lost
        assert house.queue.dispatcher.errors.by_place["ray"] == 1
        assert house.queue.figures()["inside"] == 3
        assert house.queue.dispatcher.counts.is_conserved()

    run(test())
