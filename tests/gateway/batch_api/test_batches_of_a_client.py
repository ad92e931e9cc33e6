"""Batches as the real client of openai makes them: files up, a batch, its results, cancellation, expiry, lists."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from headway.gateway.batch_api.line_client import LineClient
from headway.gateway.settings import BatchSettings, BudgetSettings, TenantSettings
from headway.gateway.wire.messages import HttpRequest, Response
from tests.support.batch_files import (
    CHAT_PATH,
    batch_client,
    batch_line,
    completion_of,
    ended_batch,
    lines_file,
    made_batch,
    result_rows,
    says_its_prompt,
)
from tests.support.gateway_setup import RunGateway, Setup
from tests.support.scripted_replica import Call, answers, waits_for

RunBatches = Callable[..., None]
Scenario = Callable[[Setup, openai.AsyncOpenAI], Awaitable[None]]


@pytest.fixture
def run_batches(run_gateway: RunGateway, tmp_path: Any) -> RunBatches:
    def run(scenario: Scenario, *, key: str = "any", batches: dict[str, Any] | None = None, **more: Any) -> None:
        async def with_client(setup: Setup) -> None:
            setup.replicas[0].usual = says_its_prompt
            async with batch_client(f"http://127.0.0.1:{setup.port}", key) as client:
                await scenario(setup, client)

        settings = {"folder": str(tmp_path), "free_bytes_min": 0, **(batches or {})}
        run_gateway(with_client, batches=BatchSettings(**settings), **more)

    return run


def test_a_batch_is_answered_in_a_file(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        lines = [batch_line(f"r{number}", f"say {number}") for number in range(200)]
        file = await client.files.create(file=lines_file(lines), purpose="batch")
        assert (file.object, file.purpose, file.filename, file.status) == ("file", "batch", "in.jsonl", "processed")
        assert file.expires_at - file.created_at == 30 * 86_400
        batch = await client.batches.create(
            input_file_id=file.id, endpoint=CHAT_PATH, completion_window="24h", metadata={"a": "b"}
        )
        assert batch.status == "validating"
        assert batch.metadata == {"a": "b"}
        assert (batch.output_file_id, batch.error_file_id, batch.errors) == (None, None, None)
        assert batch.expires_at - batch.created_at == 86_400
        batch = await ended_batch(client, batch.id)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (200, 200, 0)
        assert batch.error_file_id is None
        assert batch.model == "m"
        assert (batch.usage.input_tokens, batch.usage.output_tokens, batch.usage.total_tokens) == (1400, 400, 1800)
        found = await result_rows(client, batch.output_file_id)
        assert len(found) == 200
        for name, row in found.items():
            assert list(row) == ["id", "custom_id", "response", "error"]
            assert row["id"].startswith("batch_req_")
            assert row["error"] is None
            assert row["response"]["status_code"] == 200
            assert row["response"]["request_id"].startswith("req_")
            assert row["response"]["body"] == completion_of(f"say {name[1:]}")
        output = await client.files.retrieve(batch.output_file_id)
        assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
        assert [one.id async for one in client.files.list(purpose="batch_output")] == [output.id]
        assert [one.id async for one in client.batches.list()] == [batch.id]
        assert all(call.headers["x-headway-class"] == "offline" for call in setup.replicas[0].calls)

    run_batches(scenario)


def test_a_gateway_that_stands_by_takes_no_files_and_no_batches(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        batch = await made_batch(client, [batch_line("a")])
        await ended_batch(client, batch.id)
        queues = setup.gateway.dispatcher.served_queues
        queues.may_serve = lambda: False
        for ask in (
            lambda: client.files.create(file=lines_file([batch_line("b")]), purpose="batch"),
            lambda: client.batches.create(input_file_id="x", endpoint=CHAT_PATH, completion_window="24h"),
            lambda: client.batches.retrieve(batch.id),
        ):
            with pytest.raises(openai.InternalServerError) as refused:
                await ask()
            assert refused.value.status_code == 503
            assert refused.value.response.headers["x-headway-reason"] == "standby"
            assert "retry-after" in refused.value.response.headers
        queues.may_serve = lambda: True
        assert (await client.batches.retrieve(batch.id)).status == "completed"

    run_batches(scenario)


def test_requests_that_are_refused_are_in_the_error_file(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        async def refuses_some(call: Call) -> None:
            if call.json()["messages"][0]["content"] == "bad":
                await call.whole(400, {"error": {"message": "no", "type": "invalid_request_error"}})
            else:
                await says_its_prompt(call)

        setup.replicas[0].usual = refuses_some
        lines = [batch_line("a"), batch_line("b", "bad"), batch_line("c", model="unknown-model")]
        batch = await ended_batch(client, (await made_batch(client, lines)).id)
        assert batch.status == "completed"
        counts = batch.request_counts
        assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
        assert batch.model is None
        assert list(await result_rows(client, batch.output_file_id)) == ["a"]
        errors = await result_rows(client, batch.error_file_id)
        assert errors["b"]["response"]["status_code"] == 400
        assert errors["b"]["response"]["body"]["error"]["message"] == "no"
        assert errors["c"]["response"]["body"]["error"]["code"] == "model_not_found"
        assert all(row["error"] is None for row in errors.values())

    run_batches(scenario)


def test_a_request_at_which_a_replica_fails_is_tried_again(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        setup.replicas[0].next += [answers(500, {"error": {"message": "broken"}})]
        batch = await ended_batch(client, (await made_batch(client, [batch_line("a")])).id)
        found = await result_rows(client, batch.output_file_id)
        assert found["a"]["tries"] == 2
        setup.replicas[0].usual = answers(500, {"error": {"message": "broken"}})
        batch = await ended_batch(client, (await made_batch(client, [batch_line("a")])).id)
        errors = await result_rows(client, batch.error_file_id)
        assert errors["a"]["response"]["status_code"] == 500
        assert errors["a"]["tries"] == 2

    run_batches(scenario, batches={"tries_max": 2})


@pytest.mark.parametrize(
    ("endpoint", "body", "answer"),
    [
        ("/v1/completions", {"model": "m", "prompt": "hi"}, {"object": "text_completion", "choices": []}),
        ("/v1/embeddings", {"model": "m", "input": "hi"}, {"object": "list", "data": [{"embedding": [0.5]}]}),
        ("/v1/responses", {"model": "m", "input": "hi"}, {"object": "response", "output": []}),
    ],
)
def test_each_endpoint_can_be_asked(run_batches: RunBatches, endpoint: str, body: object, answer: object) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        setup.replicas[0].usual = answers(200, answer)
        lines = [{"custom_id": "a", "method": "POST", "url": endpoint, "body": body}]
        batch = await ended_batch(client, (await made_batch(client, lines, endpoint=endpoint)).id)
        assert (await result_rows(client, batch.output_file_id))["a"]["response"]["body"] == answer
        assert setup.replicas[0].calls[0].path == endpoint

    run_batches(scenario)


def test_a_file_with_faults_fails_whole(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        lines = [batch_line("a"), batch_line("a"), batch_line("b", stream=True), {"custom_id": "c"}]
        batch = await ended_batch(client, (await made_batch(client, lines)).id)
        assert batch.status == "failed"
        assert batch.failed_at is not None
        assert (batch.output_file_id, batch.error_file_id) == (None, None)
        faults = [(fault.line, fault.code, fault.param) for fault in batch.errors.data]
        assert faults == [
            (2, "duplicate_custom_id", "custom_id"),
            (3, "stream_not_supported", "body.stream"),
            (4, "missing_required_parameter", "method"),
        ]
        assert not setup.replicas[0].calls

    run_batches(scenario)


def test_a_cancelled_batch_keeps_what_was_answered(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        gate = asyncio.Event()
        setup.replicas[0].next += [says_its_prompt, waits_for(gate, says_its_prompt)]
        batch = await made_batch(client, [batch_line(f"r{number}", f"{number}") for number in range(700)])
        await setup.until(lambda: len(setup.replicas[0].calls) == 2)
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.batches.retrieve(batch.id)).output_file_id is None
        gate.set()
        batch = await ended_batch(client, batch.id)
        assert batch.status == "cancelled"
        assert batch.cancelling_at <= batch.cancelled_at
        answered = await result_rows(client, batch.output_file_id)
        untold = await result_rows(client, batch.error_file_id)
        assert set(answered) == {"r0", "r1"}
        assert len(untold) == 698
        assert {row["error"]["code"] for row in untold.values()} == {"batch_cancelled"}
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 698)
        with pytest.raises(openai.ConflictError, match="Cannot cancel a batch with status 'completed'"):
            await client.batches.cancel(
                (await ended_batch(client, (await made_batch(client, [batch_line("a")])).id)).id
            )
        assert len(setup.replicas[0].calls) == 3

    run_batches(scenario, seats=1)


def test_a_batch_expires_and_keeps_what_was_answered(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        setup.replicas[0].next += [says_its_prompt, waits_for(asyncio.Event(), says_its_prompt)]
        batch = await made_batch(client, [batch_line(f"r{number}") for number in range(3)], "2s")
        batch = await ended_batch(client, batch.id)
        assert batch.status == "expired"
        assert batch.expired_at >= batch.expires_at
        assert set(await result_rows(client, batch.output_file_id)) == {"r0"}
        errors = await result_rows(client, batch.error_file_id)
        assert [errors[name]["error"] for name in ("r1", "r2")] == 2 * [
            {
                "code": "batch_expired",
                "message": "This request could not be executed before the completion window expired.",
            }
        ]
        assert all(row["response"] is None for row in errors.values())

    run_batches(scenario, seats=1)


def test_lists_come_in_pages(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        made = [(await made_batch(client, [batch_line("a")])).id for _ in range(5)]
        first = await client.batches.list(limit=2)
        assert [one.id for one in first.data] == made[:2:-1]
        assert first.has_more
        assert [one.id async for one in client.batches.list(limit=2)] == made[::-1]
        for batch_id in made:
            await ended_batch(client, batch_id)
        files = [one.id async for one in client.files.list(limit=3, order="asc")]
        assert len(files) == 10
        assert [one.id async for one in client.files.list(limit=4)] == files[::-1]
        with pytest.raises(openai.NotFoundError, match="No such Batch object: batch_x"):
            await client.batches.list(after="batch_x")
        with pytest.raises(openai.BadRequestError, match="limit must be a whole number from 1 to 100"):
            await client.batches.list(limit=101)

    run_batches(scenario)


def test_files_are_read_and_deleted(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        content = b"x" * 3_000_000 + b"\n"
        file = await client.files.create(
            file=("../../etc/passwd", content),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3_600},
        )
        assert file.filename == "passwd"
        assert file.bytes == len(content)
        assert file.expires_at - file.created_at == 3_600
        assert (await client.files.content(file.id)).content == content
        assert (await client.files.delete(file.id)).deleted
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError, match="No such File object"):
                await call(file.id)
        for path in ("/v1/files/..%2f..%2flock/content", "/v1/files/lock/content", "/v1/files/a/b/c"):
            assert (await setup.get(path)).status in (400, 404)

    run_batches(scenario)


def test_a_file_that_a_batch_reads_stays(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, says_its_prompt)
        batch = await made_batch(client, [batch_line("a")])
        with pytest.raises(openai.ConflictError, match=f"{batch.id} still reads this file"):
            await client.files.delete(batch.input_file_id)
        gate.set()
        await ended_batch(client, batch.id)
        await client.files.delete(batch.input_file_id)
        with pytest.raises(openai.NotFoundError):
            await client.batches.create(input_file_id=batch.input_file_id, endpoint=CHAT_PATH, completion_window="24h")

    run_batches(scenario)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endpoint": "/v1/messages"}, "endpoint must be one of"),
        ({"completion_window": "1 year"}, "completion_window must be a time like '24h'"),
        ({"completion_window": "15d"}, "at most 14d"),
        ({"metadata": {"a": 1}}, "metadata must have keys"),
        ({"extra_body": {"priority": 1}}, "unknown parameter 'priority'"),
        ({"extra_body": {"output_expires_after": {"anchor": "created_at", "seconds": 1}}}, "from 3,600 to 2,592,000"),
    ],
)
def test_what_makes_no_batch_is_refused(run_batches: RunBatches, change: dict[str, Any], message: str) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        file = await client.files.create(file=lines_file([batch_line("a")]), purpose="batch")
        fields: dict[str, Any] = {"input_file_id": file.id, "endpoint": CHAT_PATH, "completion_window": "24h"}
        with pytest.raises(openai.BadRequestError, match=message):
            await client.batches.create(**(fields | change))

    run_batches(scenario)


KEYS = {"a": "key-of-tenant-a", "b": "key-of-tenant-b"}


def tenants(monkeypatch: pytest.MonkeyPatch, **budgets: BudgetSettings) -> tuple[TenantSettings, ...]:
    for name, key in KEYS.items():
        monkeypatch.setenv(f"KEY_OF_{name.upper()}", key)
    return tuple(
        TenantSettings(name=name, key_env=f"KEY_OF_{name.upper()}", budget=budgets.get(name, BudgetSettings()))
        for name in KEYS
    )


def test_a_tenant_sees_its_own_only(run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        batch = await made_batch(client, [batch_line("a")])
        batch = await ended_batch(client, batch.id)
        assert batch.status == "completed"
        async with batch_client(f"http://127.0.0.1:{setup.port}", KEYS["b"]) as other:
            for call, name in (
                (other.batches.retrieve, batch.id),
                (other.batches.cancel, batch.id),
                (other.files.retrieve, batch.output_file_id),
                (other.files.content, batch.output_file_id),
                (other.files.delete, batch.input_file_id),
            ):
                with pytest.raises(openai.NotFoundError, match="No such"):
                    await call(name)  # type: ignore[operator]
            assert [one.id async for one in other.files.list()] == []
            assert [one.id async for one in other.batches.list()] == []
            with pytest.raises(openai.NotFoundError):
                await other.files.list(after=batch.input_file_id)
            with pytest.raises(openai.NotFoundError):
                await other.batches.create(
                    input_file_id=batch.input_file_id, endpoint=CHAT_PATH, completion_window="24h"
                )
        async with batch_client(f"http://127.0.0.1:{setup.port}", "a-wrong-key") as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.files.create(file=lines_file([batch_line("a")]), purpose="batch")
        # No replica sees a key, and the metrics know whose requests they were.
        assert "authorization" not in setup.replicas[0].calls[0].headers
        assert 'fairness_id="a"' in setup.gateway._metrics.text().decode()

    run_batches(scenario, key=KEYS["a"], tenant=tenants(monkeypatch))


def test_a_budget_holds_for_batches_and_does_not_fail_them(
    run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        batch = await made_batch(client, [batch_line(f"r{number}") for number in range(5)], "3s")
        async with batch_client(f"http://127.0.0.1:{setup.port}", KEYS["b"]) as other:
            assert (await ended_batch(other, (await made_batch(other, [batch_line("x")])).id)).status == "completed"
        batch = await ended_batch(client, batch.id)
        assert batch.status == "expired"
        assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 3)
        assert len(setup.replicas[0].calls) == 3

    run_batches(scenario, key=KEYS["a"], tenant=tenants(monkeypatch, a=BudgetSettings(requests_per_day=2)))


def test_a_prompt_above_its_budget_fails_alone(run_batches: RunBatches, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        lines = [batch_line("long", "word " * 20_000), batch_line("short")]
        batch = await ended_batch(client, (await made_batch(client, lines)).id)
        assert batch.status == "completed"
        assert set(await result_rows(client, batch.output_file_id)) == {"short"}
        errors = await result_rows(client, batch.error_file_id)
        assert errors["long"]["response"]["status_code"] == 429

    run_batches(scenario, key=KEYS["a"], tenant=tenants(monkeypatch, a=BudgetSettings(tokens_per_minute=5_000)))


def test_only_some_lines_wait_in_the_queue(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        gate = asyncio.Event()
        setup.replicas[0].usual = waits_for(gate, says_its_prompt)
        batch = await made_batch(client, [batch_line(f"r{number}") for number in range(50)])
        await setup.until(lambda: setup.dispatcher.counts.inside == 5)
        await asyncio.sleep(0.7)
        assert setup.dispatcher.counts.inside == 5  # one at the replica, four in the queue
        state = (await setup.get("/headway/state")).json()
        assert state["batches"] == {"open": 1, "waiting": 49, "sent": 1}
        gate.set()
        assert (await ended_batch(client, batch.id)).request_counts.completed == 50

    run_batches(scenario, seats=1, batches={"waiting_max": 4})


def test_without_a_folder_both_paths_go_to_a_replica(run_gateway: RunGateway) -> None:
    async def scenario(setup: Setup) -> None:
        setup.replicas[0].usual = answers(200, {"id": "batch_of_the_engine", "object": "batch"})
        answer = await setup.ask({"input_file_id": "f"}, path="/v1/batches")
        assert answer.json()["id"] == "batch_of_the_engine"
        assert setup.replicas[0].calls[0].path == "/v1/batches"

    run_gateway(scenario)


def test_a_replica_that_is_full_fails_no_request(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        setup.replicas[0].next += [answers(503, {"error": {"message": "full"}})] * 3
        batch = await ended_batch(client, (await made_batch(client, [batch_line("a")])).id)
        assert (await result_rows(client, batch.output_file_id))["a"]["tries"] == 4

    run_batches(scenario, batches={"tries_max": 1})


def test_nothing_of_it_goes_through_a_proxy(run_batches: RunBatches) -> None:
    class Proxied:
        address = "127.0.0.1"
        status = 0

        def respond(self, response: Response) -> None:
            self.status = response.status

    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        proxied = Proxied()
        setup.gateway.api.answer(HttpRequest(b"GET", b"/v1/files", []), proxied)  # type: ignore[arg-type]
        assert proxied.status == 501

    run_batches(scenario)


def test_a_batch_waits_while_no_replica_is_up(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        setup.replicas[0].cut()
        await setup.until(lambda: not setup.dispatcher.replicas[0].is_up)
        batch = await made_batch(client, [batch_line(f"r{number}") for number in range(20)])
        await asyncio.sleep(1.0)
        assert (await client.batches.retrieve(batch.id)).request_counts.failed == 0
        await setup.replicas[0].start()
        batch = await ended_batch(client, batch.id)
        assert (batch.request_counts.completed, batch.request_counts.failed) == (20, 0)

    run_batches(scenario)


def test_a_long_answer_fails_its_request_alone(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        lines = [batch_line("long", "x" * 50_000), batch_line("short")]
        batch = await ended_batch(client, (await made_batch(client, lines)).id)
        assert set(await result_rows(client, batch.output_file_id)) == {"short"}
        errors = await result_rows(client, batch.error_file_id)
        assert errors["long"]["error"]["code"] == "answer_too_long"

    run_batches(scenario, batches={"answer_bytes_max": 10_000})


def clients_of_lines() -> int:
    return sum(isinstance(one, LineClient) for one in gc.get_objects())


def test_lines_that_ended_are_freed_without_a_collection_of_garbage(run_batches: RunBatches) -> None:
    """Answered, refused by replica or gateway, failed, too long, cut off: what is left would hold the loop later."""

    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        gc.disable()
        before = clients_of_lines()
        try:
            setup.replicas[0].next += [answers(400, {}), answers(500, {}), answers(429, {})]
            lines = [batch_line(f"r{number}") for number in range(8)]
            lines += [batch_line("long", "x" * 50_000), batch_line("unknown", model="unknown")]
            batch = await ended_batch(client, (await made_batch(client, lines)).id)
            assert (batch.request_counts.completed, batch.request_counts.failed) == (7, 3)
            assert clients_of_lines() == before
            goes_on = asyncio.Event()
            setup.replicas[0].usual = waits_for(goes_on, says_its_prompt)
            batch = await made_batch(client, lines)
            await setup.until(lambda: setup.replicas[0].inside)
            await client.batches.cancel(batch.id)  # of lines that wait in the queue
            goes_on.set()
            await ended_batch(client, batch.id)
            assert clients_of_lines() == before
        finally:
            gc.enable()

    gc.collect()  # what other tests left
    gc.freeze()  # what they still hold is not looked at again: to go through it would hold the loop
    try:
        run_batches(scenario, seats=4, batches={"answer_bytes_max": 10_000})
    finally:
        gc.unfreeze()


def test_a_large_line_goes_the_way_of_large_bodies(run_batches: RunBatches) -> None:
    async def scenario(setup: Setup, client: openai.AsyncOpenAI) -> None:
        lines = [batch_line(f"r{number}", f"{number}" * 1_000_000) for number in range(4)]
        batch = await ended_batch(client, (await made_batch(client, lines)).id)
        found = await result_rows(client, batch.output_file_id)
        assert found["r3"]["response"]["body"] == completion_of("3" * 1_000_000)

    run_batches(scenario, batches={"waiting_bytes_max": 1_500_000})
