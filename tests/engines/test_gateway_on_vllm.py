"""The gateway in front of two real vLLM servers on the CPU: the openai package and `vllm bench serve` through it.

Takes minutes, so it runs only on request: HEADWAY_VLLM_PYTHON names an interpreter that has vLLM, and
HEADWAY_REAL_ENGINE is 1. Stock vLLM, one thread each.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engines.served_vllm import (
    PYTHON,
    WANTED,
    WHY_SKIPPED,
    environment,
    fetched,
    free_port,
    gateway_running,
    is_there,
    running,
    until,
    vllm_command,
    without_ours,
)

SEATS = 4

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not WANTED, reason=WHY_SKIPPED),
]


@pytest.fixture(scope="module")
def place(place: Path) -> Path:
    return without_ours(place)


@pytest.fixture(scope="module")
def engines(place: Path) -> Iterator[list[str]]:
    """Two servers, both up; gives their URLs."""
    with ExitStack() as stack:
        servers = []
        for number in range(2):
            port = free_port()
            command = vllm_command(place, port, "--max-num-seqs", str(SEATS))
            log = place / f"vllm-{number}.log"
            servers.append((port, stack.enter_context(running(command, environment(place), log))))
        for port, server in servers:
            until(lambda port=port: is_there(f"http://127.0.0.1:{port}/health"), server)  # type: ignore[misc]
        yield [f"http://127.0.0.1:{port}" for port, _ in servers]


@pytest.fixture(scope="module")
def gateway(engines: list[str], place: Path) -> Iterator[str]:
    """`headway serve` in front of both; gives its URL."""
    (place / "gateway.toml").write_text("[queue]\nkeep_alive_seconds = 1.0\n")
    options = ["--routing", "cached-prefix", "--config", str(place / "gateway.toml")]
    options += [text for url in engines for text in ("--replica", url)]
    with gateway_running(place / "gateway.log", 2, *options) as url:
        yield url


def test_the_openai_package_gets_what_vllm_says(gateway: str) -> None:
    with openai.OpenAI(base_url=gateway + "/v1", api_key="any") as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        asked = {"model": "tiny", "prompt": "each word has its turn", "max_tokens": 12, "temperature": 0}
        whole = client.completions.create(**asked, extra_headers={"x-request-id": "whole"})
        pieces = list(client.completions.create(**asked, stream=True, extra_headers={"x-request-id": "stream"}))
        assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text
        assert all(piece.usage is None for piece in pieces)  # asked for by the gateway, and taken out again
        assert whole.usage is not None
        messages = [{"role": "user", "content": "no word is longer"}]
        told = list(
            client.chat.completions.create(
                model="tiny", messages=messages, max_tokens=8, stream=True, stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )  # type: ignore[call-overload]
        )  # fmt: skip
        assert told[-1].usage.completion_tokens == 8
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            client.completions.create(model="tiny", prompt="word " * 9_000, max_tokens=1)
    stories = {story["id"]: story for story in fetched(gateway + "/headway/state")["stories"]}
    for story in (stories["whole"], stories["stream"]):
        assert (story["outcome"], story["output_tokens"]) == ("completed", whole.usage.completion_tokens), story
        assert story["prompt_tokens"] > 0
        assert story["replica"].startswith("127.0.0.1:")


def test_messages_and_responses_get_what_vllm_says(gateway: str) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")
    said: Any = [{"role": "user", "content": "no word is longer"}]
    with anthropic.Anthropic(base_url=gateway, api_key="any", max_retries=0) as client:
        asked: Any = {"model": "tiny", "max_tokens": 8, "messages": said, "system": "each word has its turn"}
        asked |= {"extra_body": {"temperature": 0}}
        whole = client.messages.create(**asked, extra_headers={"x-request-id": "message"})
        with client.messages.stream(**asked, extra_headers={"x-request-id": "messages"}) as stream:
            final = stream.get_final_message()
        assert [part.text for part in final.content] == [part.text for part in whole.content]
        assert final.usage.output_tokens == whole.usage.output_tokens
        counted = client.messages.count_tokens(model="tiny", messages=said, system=asked["system"])
        assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)
        with pytest.raises(anthropic.NotFoundError) as unknown:
            client.messages.create(**{**asked, "model": "other"})
        assert unknown.value.type == "not_found_error"
    with openai.OpenAI(base_url=gateway + "/v1", api_key="any", max_retries=0) as other:
        asked = {"model": "tiny", "input": "no word is longer", "max_output_tokens": 8, "temperature": 0}
        answer = other.responses.create(**asked, extra_headers={"x-request-id": "response"})
        events = list(other.responses.create(**asked, stream=True, extra_headers={"x-request-id": "responses"}))
        assert events[0].type == "response.created"
        assert events[-1].response.output_text == answer.output_text
    stories = {story["id"]: story for story in fetched(gateway + "/headway/state")["stories"]}
    for name, tokens in (
        ("message", whole.usage.output_tokens), ("messages", whole.usage.output_tokens),
        ("response", answer.usage.output_tokens), ("responses", answer.usage.output_tokens),
    ):  # fmt: skip
        assert (stories[name]["outcome"], stories[name]["output_tokens"]) == ("completed", tokens), stories[name]
    body = json.dumps({"model": "tiny", "prompt": "each word"}).encode()
    request = urllib.request.Request(gateway + "/tokenize", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as told:
        assert json.load(told)["count"] > 0


def test_many_at_once_are_spread_and_the_engines_reports_are_read(gateway: str) -> None:
    with openai.OpenAI(base_url=gateway + "/v1", api_key="any") as client:

        def asks(number: int) -> tuple[str, int]:
            raw = client.completions.with_raw_response.create(
                model="tiny", prompt=f"word {number}", max_tokens=16, extra_body={"ignore_eos": True}
            )
            told = raw.parse()
            assert told.usage is not None
            return raw.headers["x-headway-replica"], told.usage.completion_tokens

        with ThreadPoolExecutor(24) as pool:
            found = list(pool.map(asks, range(48)))
    assert {tokens for _, tokens in found} == {16}
    assert len(Counter(replica for replica, _ in found)) == 2
    state = fetched(gateway + "/headway/state")
    for replica in state["replicas"]:
        assert replica["says_running"] is not None
        assert replica["kv_tokens_max"] > 0
        assert replica["requests"] == 0
    assert state["counts"]["inside"] == 0


def test_what_a_replica_confirmed_is_what_it_has_cached(gateway: str) -> None:
    """Conversations of several turns: what the gateway believes of the cache before each is what vLLM then counts."""
    text = "in this text each word has its turn and no word is longer than it must be "
    with openai.OpenAI(base_url=gateway + "/v1", api_key="any") as client:
        for turn in range(4):
            for name in ("one", "two"):
                client.completions.create(
                    model="tiny", prompt=f"{name}: {text * (100 + 20 * turn)}", max_tokens=2,
                    extra_headers={"x-request-id": f"{name}-{turn}"}
                )  # fmt: skip
    stories = {story["id"]: story for story in fetched(gateway + "/headway/state")["stories"]}
    assert stories["one-0"]["cached_tokens"] == 0
    for name in ("one", "two"):
        told = [stories[f"{name}-{turn}"] for turn in range(2, 4)]  # by the second turn it has told that it caches
        assert len({story["replica"] for story in told}) == 1
        for story in told:
            believed, cached = story["confirmed_tokens"], story["cached_tokens"]
            assert cached >= 1_024
            assert abs(believed - cached) <= 128 + cached / 8, "a block, and an eighth by the growth of the prefixes"


def test_a_client_that_leaves_frees_the_engine(gateway: str) -> None:
    before = fetched(gateway + "/headway/state")["counts"]["cancelled"]
    with openai.OpenAI(base_url=gateway + "/v1", api_key="any") as client:
        stream = client.completions.create(
            model="tiny", prompt="word", max_tokens=3_000, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(stream))
        stream.close()
    end = time.monotonic() + 60
    while any(one["says_running"] or one["requests"] for one in fetched(gateway + "/headway/state")["replicas"]):
        assert time.monotonic() < end
        time.sleep(0.2)
    assert fetched(gateway + "/headway/state")["counts"]["cancelled"] == before + 1


def test_what_waits_in_an_engine_is_taken_back(engines: list[str], place: Path) -> None:
    """One engine gets more than its seats while the other one is drained; then those that wait go there.

    vLLM has sent the heads of their streams by then.
    """
    key = "a key for this test"
    tables = [f'[[replica]]\nurl = "{url}"\nname = "r{number}"\nmax_requests = 8' for number, url in enumerate(engines)]
    chosen = '[policies]\nordering = "fcfs"\nrouting = "round-robin"\nrescheduling = "take-back"\n'
    options = "options = { rescheduling = { least_gain_seconds = 0.0 } }\n[health]\nscrape_seconds = 0.2\n"
    admin = f'[admin]\nkey_sha256 = {{ test = "{sha256(key.encode()).hexdigest()}" }}\n'
    (place / "taking.toml").write_text(chosen + options + admin + "\n".join(tables))
    with (
        gateway_running(place / "taking.log", 2, "--config", str(place / "taking.toml")) as gateway,
        openai.OpenAI(base_url=gateway + "/v1", api_key="any") as client,
    ):

        def told_by(tokens: int) -> tuple[str, int]:
            asked: dict[str, Any] = {"model": "tiny", "prompt": "word", "max_tokens": tokens, "stream": True}
            asked |= {"stream_options": {"include_usage": True}, "extra_body": {"ignore_eos": True}}
            with client.completions.with_streaming_response.create(**asked) as answer:
                found = re.findall(r'"completion_tokens": ?(\d+)', "".join(answer.iter_lines()))
                return answer.headers["x-headway-replica"], int(found[-1])

        def switch(what: str) -> None:
            header = {"Authorization": f"Bearer {key}"}
            url = f"{gateway}/admin/replicas/r1/{what}"
            urllib.request.urlopen(urllib.request.Request(url, b"", header, method="POST"), timeout=10).close()

        def engine_says(running: int, waiting: int) -> bool:
            (one,) = [one for one in fetched(gateway + "/headway/state")["replicas"] if one["name"] == "r0"]
            return (one["says_running"], one["says_waiting"]) == (running, waiting)

        switch("drain")
        with ThreadPoolExecutor(SEATS + 2) as pool:
            long = [pool.submit(told_by, 1_500) for _ in range(SEATS)]
            wait_for(lambda: engine_says(SEATS, 0))
            late = [pool.submit(told_by, 5) for _ in range(2)]
            wait_for(lambda: engine_says(SEATS, 2))
            switch("undrain")
            assert [one.result() for one in late] == [("r1", 5)] * 2
            assert not any(one.done() for one in long)
            moved = re.search(r"^headway_request_moves_total (\d+)", text_of(gateway + "/metrics"), re.MULTILINE)
            wait_for(lambda: engine_says(SEATS, 0))
            assert [one.result() for one in long] == [("r0", 1_500)] * SEATS
        counts = fetched(gateway + "/headway/state")["counts"]
    assert moved is not None
    assert (int(moved[1]), counts["completed"], counts["retried"]) == (2, SEATS + 2, 0)


def wait_for(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.1)


def text_of(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read(), "utf-8")


def keep_alives(gateway: str) -> int:
    found = re.search(r"^headway_keep_alives_total (\d+)", text_of(gateway + "/metrics"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_vllm_bench_serve_runs_through_it(gateway: str, place: Path) -> None:
    """All at once, so that some wait in the queue and get keep-alives."""
    result, port = place / "bench.json", gateway.rpartition(":")[2]
    kept_before = keep_alives(gateway)
    before = fetched(gateway + "/headway/state")["counts"]["completed"]
    subprocess.run(
        [
            str(Path(PYTHON).with_name("vllm")), "bench", "serve", "--model", "tiny",
            "--tokenizer", str(place / "model"), "--host", "127.0.0.1", "--port", port,
            "--dataset-name", "random", "--random-input-len", "60", "--random-output-len", "64", "--num-prompts", "40",
            "--request-rate", "inf", "--ignore-eos", "--save-result", "--result-filename", str(result),
        ],
        env=environment(place), check=True, capture_output=True,
    )  # fmt: skip
    found = json.loads(result.read_text())
    assert (found["completed"], found["total_output_tokens"]) == (40, 40 * 64)
    assert fetched(gateway + "/headway/state")["counts"]["completed"] >= before + 40
    assert keep_alives(gateway) > kept_before
