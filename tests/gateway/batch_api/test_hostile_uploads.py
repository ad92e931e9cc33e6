"""Uploads that mean harm, or go wrong: bombs of parts, endless lines, broken forms, full disks. None leaves a trace."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from headway.gateway.batch_api.batch_store import BatchStore
from headway.gateway.settings import BatchSettings, TenantSettings
from tests.support.batch_files import batch_client, batch_line, ended_batch, lines_file, made_batch, says_its_prompt
from tests.support.gateway_setup import Answer, RawClient, RunGateway, Setup

RunBatches = Callable[..., None]
PURPOSE = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="in.jsonl"\r\n\r\n'
END = b"\r\n--b--\r\n"
MANY_PARTS = b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n' % n for n in range(1_000))


@pytest.fixture
def run_batches(run_gateway: RunGateway, tmp_path: Path) -> RunBatches:
    def run(
        scenario: Callable[[Setup], Awaitable[None]], *, batches: dict[str, Any] | None = None, **more: Any
    ) -> None:
        async def whole(setup: Setup) -> None:
            setup.replicas[0].usual = says_its_prompt
            await scenario(setup)
            await setup.until(lambda: not setup.gateway._batches.routes._uploads)
            assert not list((tmp_path / "uploads").iterdir()), "an upload left something on the disk"

        settings = {"folder": str(tmp_path), "free_bytes_min": 0, **(batches or {})}
        run_gateway(whole, batches=BatchSettings(**settings), **more)

    return run


def upload_head(length: int | None, content_type: str = "multipart/form-data; boundary=b", more: str = "") -> bytes:
    framing = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    return f"POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\n{more}{framing}\r\n\r\n".encode()


async def uploaded(setup: Setup, body: bytes, content_type: str = "multipart/form-data; boundary=b") -> Answer:
    async with RawClient(setup.port) as client:
        await client.send(upload_head(len(body), content_type) + body)
        return await client.answer()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (PURPOSE + END[2:], "no part `file`"),
        (FILE + b"{}" + END, "purpose must be 'batch'"),
        (PURPOSE.replace(b"batch", b"fine-tune") + FILE + b"{}" + END, "purpose must be 'batch'"),
        (PURPOSE + PURPOSE + FILE + END, "the part 'purpose' more than once"),
        (PURPOSE + FILE + b"{}\r\n" + FILE + END, "more than one part `file`"),
        (PURPOSE + FILE + b"{}", "not a valid form"),
        (b"no form at all" * 1000, "not a valid form"),
        (b"", "not a valid form"),
        (PURPOSE.replace(b"batch", b"x" * 5_000) + FILE + END, "longer than 4096 bytes"),
        (PURPOSE + b"--b\r\n" + b"x-a: b\r\n" * 100 + b"\r\n" + END, "beyond a bound"),
        (PURPOSE + b"--b\r\nx-a: " + b"y" * 100_000 + b"\r\n\r\n" + END, "beyond a bound"),
        (PURPOSE + MANY_PARTS + FILE + END, "beyond a bound"),
        (
            PURPOSE + b'--b\r\nContent-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n9\r\n' + FILE + END,
            "expires_after.anchor",
        ),
    ],
    ids=[str(number) for number in range(13)],
)
def test_a_form_that_is_wrong_is_refused(run_batches: RunBatches, body: bytes, message: str) -> None:
    async def scenario(setup: Setup) -> None:
        answer = await uploaded(setup, body)
        assert (answer.status, answer.reason) == (400, "malformed")
        assert message in answer.json()["error"]["message"]
        assert "/" + str(setup.settings.batches.folder) not in answer.body.decode()
        assert (await setup.get("/v1/files")).json()["data"] == []

    run_batches(scenario)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [("application/json", 415), ("multipart/form-data", 415), ("multipart/form-data; boundary=", 415)],
)
def test_what_is_no_form_is_not_read(run_batches: RunBatches, content_type: str, status: int) -> None:
    async def scenario(setup: Setup) -> None:
        assert (await uploaded(setup, b"{}", content_type)).status == status

    run_batches(scenario)


def test_a_file_above_the_bound_is_refused_by_its_head_and_without_one_in_the_middle(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(upload_head(10**9))
            assert (await client.answer()).status == 413
        body = PURPOSE + FILE + b"x" * 2_000 + END
        answer = await uploaded(setup, body)
        assert "longer than 1000 bytes" in answer.json()["error"]["message"]
        async with RawClient(setup.port) as client:  # without an end
            await client.send(upload_head(None))
            piece = b"x" * 65_536
            await client.send(b"%x\r\n%b\r\n" % (len(PURPOSE + FILE), PURPOSE + FILE))
            for _ in range(20):
                await client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            answer = await client.answer()  # though it goes on
            assert answer.status in (400, 413)
            assert "longer than" in answer.json()["error"]["message"]

    run_batches(scenario, batches={"file_bytes_max": 1_000})


def test_a_client_that_leaves_leaves_nothing(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as client:
            await client.send(upload_head(50_000_000) + PURPOSE + FILE + b"x" * 3_000_000)
            folder = Path(str(setup.settings.batches.folder)) / "uploads"
            await setup.until(lambda: list(folder.iterdir()))

    run_batches(scenario)


def test_so_many_uploads_at_once_and_no_more(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        async with RawClient(setup.port) as first, RawClient(setup.port) as second:
            for client in (first, second):
                await client.send(upload_head(1_000) + PURPOSE)
            await setup.until(lambda: len(setup.gateway._batches.routes._uploads) == 2)
            answer = await uploaded(setup, PURPOSE + FILE + END)
            assert (answer.status, answer.reason) == (429, "overloaded")

    run_batches(scenario, batches={"uploads_max": 2})


KEYS = {"a": "key-of-tenant-a", "b": "key-of-tenant-b"}


async def begun(client: RawClient, tenant: str, length: int) -> None:
    await client.send(upload_head(length, more=f"authorization: Bearer {KEYS[tenant]}\r\n") + PURPOSE)


def two_tenants(monkeypatch: pytest.MonkeyPatch) -> tuple[TenantSettings, ...]:
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_OF_{name.upper()}", key)
    return tuple(TenantSettings(name=name, key_env=f"KEY_OF_{name.upper()}") for name in KEYS)


def test_one_tenant_does_not_take_the_places_of_all_uploads(
    run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        uploads = setup.gateway._batches.routes._uploads
        async with RawClient(setup.port) as first, RawClient(setup.port) as second, RawClient(setup.port) as third:
            await begun(first, "a", 1_000)
            await begun(second, "a", 1_000)
            await setup.until(lambda: len(uploads) == 2)
            await begun(third, "a", 1_000)
            assert (await third.answer()).status == 429
            async with RawClient(setup.port) as other:
                await begun(other, "b", 1_000)
                await setup.until(lambda: len(uploads) == 3)

    run_batches(scenario, batches={"uploads_max": 4}, tenant=two_tenants(monkeypatch))


def test_what_uploads_have_announced_counts_as_used_of_their_tenant_alone(
    run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup) -> None:
        uploads = setup.gateway._batches.routes._uploads
        async with RawClient(setup.port) as first, RawClient(setup.port) as second:
            await begun(first, "a", 2_000)
            await setup.until(lambda: len(uploads) == 1)
            await begun(second, "a", 2_000)
            assert (await second.answer()).status == 413
            async with RawClient(setup.port) as other, RawClient(setup.port) as beyond_all:
                await begun(other, "b", 2_000)
                await setup.until(lambda: len(uploads) == 2)
                await begun(beyond_all, "b", 900)
                assert (await beyond_all.answer()).status == 507

    bounds = {"tenant_bytes_max": 3_000, "bytes_max": 4_500}
    run_batches(scenario, batches=bounds, tenant=two_tenants(monkeypatch))


def test_an_upload_that_takes_too_long_ends(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        clock = setup.stop_the_clock()
        async with RawClient(setup.port) as client:
            await client.send(upload_head(1_000) + PURPOSE)
            await setup.until(lambda: setup.gateway._batches.routes._uploads)
            clock.now += 100.0
            await asyncio.sleep(0.6)
            assert setup.gateway._batches.routes._uploads
            clock.now += 600.0
            assert (await client.answer()).status == 408

    run_batches(scenario)


def test_an_endless_line_is_a_fault_of_its_file(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        async with batch_client(f"http://127.0.0.1:{setup.port}") as client:
            file = await client.files.create(file=("in.jsonl", b'{"a":"' + b"x" * 3_000_000), purpose="batch")
            batch = await client.batches.create(
                input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
            )
            batch = await ended_batch(client, batch.id)
            assert [fault.code for fault in batch.errors.data] == ["line_too_long"]

    run_batches(scenario, batches={"line_bytes_max": 1_000_000})


def test_beyond_the_bounds_of_the_folder_uploads_are_refused(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        body = PURPOSE + FILE + b"x" * 1_500 + END
        assert (await uploaded(setup, body)).status == 200
        answer = await uploaded(setup, body)
        assert (answer.status, answer.reason, answer.headers["x-should-retry"]) == (507, "storage-full", "false")
        assert "batches.bytes_max" in answer.json()["error"]["message"]

    run_batches(scenario, batches={"bytes_max": 3_000})


def test_a_full_disk_refuses_an_upload_and_holds_up_a_batch_without_losing_a_line(
    run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_full, append = [False], BatchStore.append

    def appended(store: BatchStore, file_id: str, size: int, text: bytes) -> None:
        if is_full[0]:  # as a disk does: some of it is written, then no more
            append(store, file_id, size, text[: len(text) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(store, file_id, size, text)

    monkeypatch.setattr(BatchStore, "append", appended)
    monkeypatch.setattr("headway.gateway.batch_api.open_batches._AFTER_FAULT_SECONDS", 0.1)

    async def scenario(setup: Setup) -> None:
        async with batch_client(f"http://127.0.0.1:{setup.port}") as client:
            is_full[0] = True
            batch = await made_batch(client, [batch_line(f"r{n}") for n in range(100)])
            await setup.until(lambda: setup.gateway._batches.open_batches.store_faults > 2)
            asked = len(setup.replicas[0].calls)
            await asyncio.sleep(0.5)
            assert len(setup.replicas[0].calls) <= asked + 64
            assert (await client.batches.retrieve(batch.id)).status == "in_progress"
            is_full[0] = False
            batch = await ended_batch(client, batch.id)
            assert batch.request_counts.completed == 100
            content = await client.files.content(batch.output_file_id)
            assert len(content.content.splitlines()) == 100
            assert len(setup.replicas[0].calls) == 100

    run_batches(scenario)


def test_a_disk_that_takes_no_more_bytes_refuses_an_upload(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, before[1]))
        try:
            answer = await uploaded(setup, PURPOSE + FILE + b"x" * (6 << 20) + END)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (answer.status, answer.reason) == (507, "storage-full")
        assert (await setup.get("/v1/files")).json()["data"] == []

    run_batches(scenario)


def test_the_form_of_the_client_is_read_whatever_its_pieces(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup) -> None:
        name, content = lines_file([batch_line("a")])
        body = PURPOSE + FILE + content + END
        async with RawClient(setup.port) as client:
            await client.send(upload_head(len(body), more="expect: 100-continue\r\n"))
            assert (await client.head())[0] == 100
            for at in range(0, len(body), 7):
                await client.send(body[at : at + 7])
                await asyncio.sleep(0)
            answer = await client.answer()
            assert (answer.json()["filename"], answer.json()["bytes"]) == (name, len(content))
            await client.send(b"GET /v1/files HTTP/1.1\r\nhost: x\r\n\r\n")  # the connection goes on
            assert len((await client.answer()).json()["data"]) == 1

    run_batches(scenario)
