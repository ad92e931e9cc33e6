"""The law of the lease: never two active at once, whatever clocks, pauses and stores do; and somebody soon is."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.gateway.leadership.leadership import chosen_lease
from headway.gateway.leadership.lease import Lease, LeaseFault, SeenLease, own_name
from headway.gateway.leadership.lease_file import FileLeaseStore
from headway.gateway.settings import LeaseSettings

SECONDS = 6.0


@dataclass
class World:
    """True time, one record, and who may reach it."""

    now: float = 0.0
    record: SeenLease = field(default_factory=lambda: SeenLease("", SECONDS, ""))
    writes: int = 0


class RecordInMemory:
    """Each call takes as long as the test says, before and after the record is touched."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.fails = False
        self.delays: list[float] = []

    def _pass(self) -> None:
        self.world.now += self.delays.pop() if self.delays else 0.0

    async def read(self) -> SeenLease:
        if self.fails:
            raise LeaseFault("the store is away")
        self._pass()
        seen = self.world.record
        self._pass()
        return seen

    async def write(self, holder: str, seconds: float, version: str) -> bool:
        if self.fails:
            raise LeaseFault("the store is away")
        self._pass()
        if self.world.record.version != version:
            return False
        self.world.writes += 1
        self.world.record = SeenLease(holder, seconds, str(self.world.writes))
        self._pass()
        return True

    async def close(self) -> None:
        pass


def gateways(world: World, speeds: list[float]) -> list[tuple[Lease, RecordInMemory]]:
    def clock(speed: float, offset: float) -> Callable[[], float]:
        return lambda: offset + speed * world.now

    made = []
    for number, speed in enumerate(speeds):
        store = RecordInMemory(world)
        made.append((Lease(store, SECONDS, name=f"g{number}", clock=clock(speed, 1_000.0 * number)), store))
    return made


steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # whose turn it is: others are paused, or asleep
        st.floats(0, 4.0),  # before it
        st.lists(st.floats(0, 5.0), max_size=4),  # how long its calls take
        st.booleans(),  # its store is away
        st.booleans(),  # it leaves
    ),
    max_size=60,
)


@given(steps, st.lists(st.floats(0.85, 1.15), min_size=3, max_size=3), st.integers(0, 20))
@example([(1, 0.0, [], False, False)], [1.0] * 3, 0)
@settings(max_examples=300)
def test_never_two_are_active(
    turns: list[tuple[int, float, list[float], bool, bool]], speeds: list[float], deleted_at: int
) -> None:
    """Nor where the record is deleted once, at this turn, under gateways that have seen it."""
    world = World()
    everyone = gateways(world, speeds)
    left: set[int] = set()

    def law() -> None:
        assert sum(lease.is_held for number, (lease, _) in enumerate(everyone) if number not in left) <= 1

    async def whole() -> None:
        for lease, _ in everyone:
            await lease.look()
        for turn, (number, before, delays, fails, leaves) in enumerate(turns):
            if turn == deleted_at:
                world.record = SeenLease("", SECONDS, "")
            world.now += before
            law()
            lease, store = everyone[number]
            store.delays, store.fails = list(delays), fails
            if leaves and number not in left:
                left.add(number)
                await lease.leave()
            elif number not in left:
                await lease.look()
            law()

    asyncio.run(whole())


def test_somebody_takes_over_within_the_time_and_not_before() -> None:
    world = World()
    (first, _), (second, _) = gateways(world, [1.0, 1.0])

    async def whole() -> None:
        await first.look()
        assert (first.is_held, second.is_held) == (True, False)
        await second.look()
        world.now += SECONDS * 2 / 3 + 0.01
        assert not first.is_held, "passive before another may take over"
        assert not first.may_serve
        await second.look()
        assert not second.is_held
        world.now += SECONDS / 3
        await second.look()
        assert second.is_held
        await first.look()
        assert not first.is_held

    asyncio.run(whole())


def test_one_that_renews_stays_active_and_one_that_leaves_is_replaced_at_once() -> None:
    world = World()
    (first, _), (second, _) = gateways(world, [1.0, 1.0])

    async def whole() -> None:
        for _ in range(100):
            await first.look()
            await second.look()
            assert first.is_held
            world.now += SECONDS / 4
        await first.leave()
        await second.look()
        assert second.is_held
        assert first.may_serve, "it finishes what it has"
        await second.leave()
        third, _ = gateways(world, [1.0])[0]
        await third.leave()
        assert not third.may_serve, "it never served"
        await third.look()
        assert not third.is_held

    asyncio.run(whole())


def test_a_record_that_is_deleted_is_written_again_by_its_holder() -> None:
    world = World()
    (first, _), (second, _) = gateways(world, [1.0] * 2)

    async def whole() -> None:
        for lease in (first, second):
            await lease.look()
        world.record = SeenLease("", SECONDS, "")
        await second.look()
        assert (first.is_held, second.is_held) == (True, False)
        await first.look()
        assert first.is_held
        world.record = SeenLease("", SECONDS, "")  # and its holder is dead
        await second.look()
        world.now += SECONDS
        await second.look()
        assert (first.is_held, second.is_held) == (False, True)

    asyncio.run(whole())


def test_a_store_that_is_away_ends_the_lease_and_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    ((only, store),) = gateways(world, [1.0])

    async def whole() -> None:
        await only.look()
        store.fails = True
        for _ in range(10):
            world.now += 1.0
            await only.look()
        assert not only.is_held
        store.fails = False
        await only.look()
        assert only.is_held
        assert only.taken == 2

    asyncio.run(whole())
    told = [record.getMessage() for record in caplog.records]
    assert told.count("the lease cannot be renewed or watched: the store is away") == 1
    assert sum("stands by" in line for line in told) == 1


def test_one_that_stands_by_says_once_who_is_active(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    world = World()
    (first, _), (second, _) = gateways(world, [1.0, 1.0])

    async def whole() -> None:
        for _ in range(3):
            await first.look()
            await second.look()

    asyncio.run(whole())
    said = [(record.getMessage(), record.__dict__["fields"]) for record in caplog.records if "another" in record.msg]
    sentence = "another gateway holds the lease, and this one stands by"
    assert said == [(sentence, {"lease": second.name, "holder": first.name})]


def test_it_is_kept_and_shown() -> None:
    world = World()
    ((only, _),) = gateways(world, [1.0])

    async def whole() -> None:
        task = asyncio.create_task(only.keep())
        while not only.is_held:
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(whole())
    text = "".join(only.metrics())
    assert "headway_lease_held 1.0" in text
    assert "headway_lease_taken_total 1.0" in text


# The file


def test_a_record_is_replaced_only_as_it_was_read(tmp_path: Path) -> None:
    store = FileLeaseStore(str(tmp_path / "lease"), SECONDS)

    async def whole() -> None:
        empty = await store.read()
        assert empty == SeenLease("", SECONDS, "")
        assert await store.write("a-long-name-of-a-gateway", 6, empty.version)
        assert not await store.write("b", 6, empty.version)
        seen = await store.read()
        assert (seen.holder, seen.seconds) == ("a-long-name-of-a-gateway", 6)
        assert await store.write("b", 7, seen.version)
        after = await store.read()
        assert (after.holder, after.seconds) == ("b", 7)
        assert after.version != seen.version
        assert await store.write("b", 7, after.version)
        assert (await store.read()).version != after.version, "a renewal shows"

    asyncio.run(whole())
    assert json.loads((tmp_path / "lease").read_text()) == {"renewals": 3, "holder": "b", "seconds": 7}


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[1]",
        b'{"renewals": "x", "holder": "a"}',
        b"\xff\x00",
        b"null\n",
        b"[" * 4_000,
        b'{"renewals": Infinity, "holder": "a", "seconds": 6}',
        b'{"renewals": 1, "holder": "a", "seconds": Infinity}',
        b'{"renewals": 1, "holder": "a", "seconds": NaN}',
        b'{"renewals": 1, "holder": "a", "seconds": 1%b}' % (b"0" * 400),
    ],
)
def test_a_record_that_cannot_be_read_is_somebodys_until_its_time_is_over(tmp_path: Path, content: bytes) -> None:
    path, now = tmp_path / "lease", [0.0]
    path.write_bytes(content)
    lease = Lease(FileLeaseStore(str(path), SECONDS), SECONDS, name="me", clock=lambda: now[0])

    async def whole() -> None:
        await lease.look()
        assert not lease.is_held
        now[0] += SECONDS
        await lease.look()
        assert lease.is_held

    asyncio.run(whole())


def test_a_file_system_that_hangs_takes_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, answers, begun = FileLeaseStore(str(tmp_path / "lease"), SECONDS), Event(), []

    def hangs() -> bytes:
        begun.append(1)
        answers.wait(60)
        return b""

    async def whole() -> None:
        monkeypatch.setattr(store, "_content", hangs)
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await store.read()
        assert len(begun) == 1
        answers.set()
        assert await store.read() == SeenLease("", SECONDS, "")

    asyncio.run(whole())


def test_a_named_pipe_is_no_lease(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lease")
    lease = Lease(FileLeaseStore(str(tmp_path / "lease"), SECONDS), SECONDS)
    asyncio.run(asyncio.wait_for(lease.look(), 60))
    assert not lease.is_held


def test_a_file_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    store = FileLeaseStore(str(tmp_path / "no" / "lease"), SECONDS)

    async def whole() -> None:
        with pytest.raises(LeaseFault, match=r"lease\.file .*: No such file or directory"):
            await store.write("a", 6, "")

    asyncio.run(whole())


def test_names_differ_and_none_is_chosen_by_default(tmp_path: Path) -> None:
    assert own_name() != own_name()
    assert chosen_lease(LeaseSettings()) is None
    assert chosen_lease(LeaseSettings(file=str(tmp_path / "lease"))) is not None


def test_a_fault_of_ours_ends_neither_the_keeping_nor_the_drain(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(RecordInMemory):
        is_broken = True

        async def read(self) -> SeenLease:
            if self.is_broken:
                raise ZeroDivisionError("a fault of ours")
            return await super().read()

    async def scenario() -> None:
        store = Broken(World())
        lease = Lease(store, 0.2, name="a")
        keeping = asyncio.create_task(lease.keep())
        async with asyncio.timeout(60):
            while not caplog.records:
                await asyncio.sleep(0.01)
            store.is_broken = False
            while not lease.is_held:
                await asyncio.sleep(0.01)
        assert not keeping.done()
        assert caplog.records[0].exc_info is not None
        keeping.cancel()
        store.is_broken = True
        await lease.leave()

    asyncio.run(scenario())
