"""KV events of a real vLLM server on the CPU: what the index says of each prompt is what the engine then counts.

Takes a minute or two, so it runs only on request: HEADWAY_VLLM_PYTHON names an interpreter that has vLLM, and
HEADWAY_REAL_ENGINE is 1. The cache is small, so that blocks are evicted all the time.
"""

from __future__ import annotations

import json
import random
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.engines.served_vllm import (
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

pytest.importorskip("zmq", reason="pyzmq is not installed (extra kv-events)")
BLOCK_TOKENS, BLOCKS = 32, 130  # 4,096 tokens, which is one prompt of the longest kind, and a little

pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not WANTED, reason=WHY_SKIPPED)]


@pytest.fixture(scope="module")
def engine(place: Path) -> Iterator[str]:
    """One server that publishes its events; gives its URL."""
    port, events, replay = free_port(), free_port(), free_port()
    kv_events = {
        "enable_kv_cache_events": True, "endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"
    }  # fmt: skip
    command = vllm_command(
        without_ours(place), port, "--kv-events-config", json.dumps(kv_events), "--max-num-seqs", "4",
        "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(BLOCKS)
    )  # fmt: skip
    with running(command, environment(place), place / "vllm.log") as server:
        until(lambda: is_there(f"http://127.0.0.1:{port}/health"), server)
        yield f"http://127.0.0.1:{port}"


@contextmanager
def in_front_of(engine: str, place: Path, name: str) -> Iterator[str]:
    """`headway serve` that reads the engine's events; gives its URL."""
    (place / f"{name}.toml").write_text(
        f"""
        [[replica]]
        url = "{engine}"
        kv_events = true
        [policies]
        routing = "cached-prefix"
        [tokenizers]
        tiny = "{place / "model" / "tokenizer.json"}"
        """
    )
    with gateway_running(place / f"{name}.log", 1, "--config", str(place / f"{name}.toml")) as url:
        yield url


@pytest.fixture(scope="module")
def gateway(engine: str, place: Path) -> Iterator[str]:
    with in_front_of(engine, place, "gateway") as url:
        yield url


def settled(gateway: str) -> dict[str, Any]:
    """What is known of the replica's events, once no more come."""
    before: dict[str, Any] | None = None
    end = time.monotonic() + 30
    while time.monotonic() < end:
        now: dict[str, Any] = fetched(gateway + "/headway/state")["replicas"][0]["kv_events"]
        if now == before and now["connected"]:
            return now
        before = now
        time.sleep(0.15)
    raise AssertionError("events do not end")


def ask(gateway: str, name: str, prompt: object, path: str = "/v1/completions", **fields: object) -> dict[str, Any]:
    """The story of one request: what was expected to be cached, and what was."""
    settled(gateway)
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 2, "temperature": 0, **fields}
    if path == "/v1/chat/completions":
        body["messages"] = body.pop("prompt")
    headers = {"content-type": "application/json", "x-request-id": name}
    request = urllib.request.Request(gateway + path, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=120) as answer:
        json.load(answer)
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for story in fetched(gateway + "/headway/state")["stories"]:
            if story["id"] == name:
                known: dict[str, Any] = story
                return known
        time.sleep(0.05)
    raise AssertionError("the request has no story")


def test_what_the_index_says_is_what_the_engine_counts_through_evictions(gateway: str) -> None:
    """Prompts of token ids: a tree of shared prefixes, asked for in any order, far more than the cache holds."""
    chance = random.Random(7)
    trunks = [[chance.randrange(3, 900) for _ in range(900)] for _ in range(4)]
    told = []
    for number in range(60):
        trunk = trunks[chance.choice((0, 0, 1, 2, 3))]
        prompt = trunk[: chance.randrange(300, 900)] + [chance.randrange(3, 900) for _ in range(chance.randrange(300))]
        salt = {"cache_salt": "tenant"} if number % 7 == 3 else {}
        story = ask(gateway, f"ids-{number}", prompt, **salt)
        assert story["confirmed_tokens"] == story["cached_tokens"], (number, story)
        told.append(story["cached_tokens"])
    assert sum(tokens > 0 for tokens in told) > 20
    assert len(set(told)) > 10
    events = settled(gateway)
    assert events["whole"]
    assert events["block_tokens"] == BLOCK_TOKENS
    assert 0 < events["blocks"] < BLOCKS
    assert (events["gaps"], events["malformed"], events["blocks_left_out"], events["ignored"]) == (0, 0, 0, 0)


WORDS = ["in", "this", "text", "each", "word", "has", "its", "turn", "and", "no", "other", "is", "longer", "than", "it"]


def words(chance: random.Random, count: int) -> str:
    return " ".join(chance.choice(WORDS) for _ in range(count))


def test_texts_are_looked_up_by_the_tokens_of_their_model(gateway: str) -> None:
    chance = random.Random(11)
    trunks = [words(chance, 700) for _ in range(3)]
    told = []
    for number in range(20):
        trunk = chance.choice(trunks)
        prompt = trunk[: chance.randrange(len(trunk) // 2, len(trunk))] + " " + words(chance, chance.randrange(150))
        story = ask(gateway, f"text-{number}", prompt)
        assert story["confirmed_tokens"] == story["cached_tokens"], (number, story)
        told.append(story["cached_tokens"])
    assert sum(tokens > 0 for tokens in told) > 5


def test_a_chat_is_known_to_an_eighth_until_it_is_evicted(gateway: str) -> None:
    chance = random.Random(13)
    said: list[dict[str, str]] = []
    stories = []
    for turn in range(4):
        said = [*said, {"role": "user", "content": words(chance, 250)}]
        stories.append(ask(gateway, f"chat-{turn}", said, "/v1/chat/completions"))
        said = [*said, {"role": "assistant", "content": "so it is"}]
    for story in stories[1:]:
        believed, cached = story["confirmed_tokens"], story["cached_tokens"]
        assert cached > 0
        assert abs(believed - cached) <= BLOCK_TOKENS + cached / 8, story
    for number in range(2):  # all that the cache can hold
        ask(gateway, f"flood-{number}", [chance.randrange(3, 900) for _ in range(3_900)])
    story = ask(gateway, "chat-again", said, "/v1/chat/completions")
    assert (story["confirmed_tokens"], story["cached_tokens"]) == (0, 0)


def test_a_gateway_that_comes_late_learns_what_the_engine_holds(gateway: str, engine: str, place: Path) -> None:
    chance = random.Random(17)
    prompt = [chance.randrange(3, 900) for _ in range(1_000)]
    ask(gateway, "before", prompt)
    with in_front_of(engine, place, "late") as late:
        assert settled(late)["whole"]
        assert settled(late)["blocks"] == settled(gateway)["blocks"]
        story = ask(late, "after", [*prompt[:700], 5, 6, 7])
        assert story["confirmed_tokens"] == story["cached_tokens"] == 700 // BLOCK_TOKENS * BLOCK_TOKENS
