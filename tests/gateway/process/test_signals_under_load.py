"""`headway serve` as a process, told to go or to read its file again while clients are being served: nobody is lost."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.gateway_setup import RawClient, completion, post
from tests.support.scripted_replica import ScriptedReplica, echoes
from tests.support.serve_process import fetched, next_line, serving_beside

CONFIG = '[queue]\nmax_requests = {bound}\n[policies]\nordering = "{ordering}"\n[[replica]]\nurl = "{url}"\n'
ALL = 60


async def asks(port: int, number: int) -> str:
    """One client; how it ended."""
    mark = f"n{number}"
    try:
        async with RawClient(port) as client:
            await client.send(post(completion(prompt=mark)))
            answer = await client.answer()
    except (ConnectionError, asyncio.IncompleteReadError):
        return "not taken"
    if answer.status != 200:
        return f"{answer.status} {answer.reason}"
    if not answer.whole:
        return "cut off"
    assert answer.texts.split() == [f"{mark}.{token}" for token in range(8)]
    return "whole"


def written(file: Path, url: str, **values: object) -> Path:
    file.write_text(CONFIG.format(url=url, **{"bound": 1_000, "ordering": "fcfs"} | values))
    return file


async def until_running(url: str) -> dict[str, Any]:
    """The state once somebody runs and somebody waits."""
    async with asyncio.timeout(120):
        while True:
            state = dict(json.loads(await asyncio.to_thread(fetched, url + "/headway/state")))
            if state["counts"]["inside"] and state["replicas"][0]["requests"]:
                return state
            await asyncio.sleep(0.02)


def test_sigterm_under_load_finishes_everybody_it_took_and_says_how_many(tmp_path: Path) -> None:
    async def scenario() -> None:
        gate = asyncio.Event()
        replica = await ScriptedReplica(echoes(gate=gate)).start()
        config = written(tmp_path / "gateway.toml", replica.url)
        async with serving_beside("--config", config) as (process, url):
            port = int(url.rpartition(":")[2])
            asking = [asyncio.ensure_future(asks(port, number)) for number in range(ALL)]
            async with asyncio.timeout(120):
                while (await until_running(url))["counts"]["arrived"] < ALL:
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(120):
                while await asks_nothing(port):
                    await asyncio.sleep(0.02)
            gate.set()
            found = Counter(await asyncio.gather(*asking))
            assert found == {"whole": ALL}
            assert await asks(port, ALL) == "not taken"
            _, told = await asyncio.to_thread(process.communicate, timeout=120)
            assert process.returncode == 0
        last = json.loads(told.splitlines()[-1])
        assert last == last | {"message": "stopped", "arrived": ALL, "completed": ALL, "cut_off": 0}
        assert len(replica.calls) == ALL
        await replica.stop()

    asyncio.run(scenario())


async def asks_nothing(port: int) -> bool:
    """Whether a connection is still taken."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return False
    writer.transport.abort()
    return True


def test_sighup_under_load_loses_nobody(tmp_path: Path) -> None:
    async def scenario() -> None:
        replicas = [await ScriptedReplica(echoes(gap=0.02)).start() for _ in range(2)]
        file = tmp_path / "gateway.toml"
        written(file, replicas[0].url)
        async with serving_beside("--config", file) as (process, url):
            assert process.stderr is not None
            port = int(url.rpartition(":")[2])
            asking = []
            orders = ("smallest-volume-first", "fair-share", "highest-response-ratio", "fcfs")
            for turn, ordering in enumerate(orders):
                asking += [asyncio.ensure_future(asks(port, 100 * turn + number)) for number in range(ALL // 4)]
                await until_running(url)
                written(file, replicas[(turn + 1) % 2].url, ordering=ordering)
                process.send_signal(signal.SIGHUP)
                assert await asyncio.to_thread(next_line, process, "configuration reloaded")
            assert Counter(await asyncio.gather(*asking)) == {"whole": ALL}
            state = json.loads(await asyncio.to_thread(fetched, url + "/headway/state"))
            assert (state["counts"]["arrived"], state["counts"]["completed"]) == (ALL, ALL)
        asked = [str(call.json()["prompt"]) for one in replicas for call in one.calls]
        assert len(asked) == len(set(asked)) == ALL
        assert all(one.calls for one in replicas)
        for one in replicas:
            await one.stop()

    asyncio.run(scenario())


def test_the_second_sigterm_ends_it_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await ScriptedReplica(echoes(gate=asyncio.Event())).start()
        async with serving_beside("--config", written(tmp_path / "gateway.toml", replica.url)) as (process, url):
            port = int(url.rpartition(":")[2])
            asking = asyncio.ensure_future(asks(port, 0))
            await until_running(url)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(120):
                while await asks_nothing(port):
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, 20) == -signal.SIGTERM
            assert await asking == "cut off"
        await replica.stop()

    asyncio.run(scenario())


def test_a_client_that_leaves_while_the_gateway_drains_does_not_hold_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        replica = await ScriptedReplica(echoes(gate=asyncio.Event())).start()
        async with serving_beside("--config", written(tmp_path / "gateway.toml", replica.url)) as (process, url):
            port = int(url.rpartition(":")[2])
            asking = asyncio.ensure_future(asks(port, 0))
            await until_running(url)
            process.send_signal(signal.SIGTERM)
            asking.cancel()
            _, told = await asyncio.to_thread(process.communicate, timeout=120)
            assert process.returncode == 0
        last = json.loads(told.splitlines()[-1])
        assert last == last | {"message": "stopped", "arrived": 1, "cancelled": 1, "cut_off": 0}
        await replica.stop()

    asyncio.run(scenario())
