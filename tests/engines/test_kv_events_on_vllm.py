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
from contextlib import ExitStack
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
def gateway(place: Path) -> Iterator[str]:
    """`headway serve` in front of one server whose events it reads; gives its URL."""
    port, events = free_port(), free_port()
    replay = free_port()
    kv_events = {
        "enable_kv_cache_events": True, "endpoint": f"tcp://*:{events}", "replay_endpoint": f"tcp://*:{replay}"
    }  # fmt: skip
    command = vllm_command(
        without_ours(place), port, "--kv-events-config", json.dumps(kv_events), "--max-num-seqs", "4",
        "--block-size", str(BLOCK_TOKENS), "--num-gpu-blocks-override", str(BLOCKS)
    )  # fmt: skip
    with ExitStack() as stack:
        server = stack.enter_context(running(command, environment(place), place / "vllm.log"))
        until(lambda: is_there(f"http://127.0.0.1:{port}/health"), server)
        (place / "gateway.toml").write_text(
            f"""
            [[replica]]
            url = "http://127.0.0.1:{port}"
            kv_events = true
            [policies]
            routing = "cached-prefix"
            [tokenizers]
            tiny = "{place / "model" / "tokenizer.json"}"
            """
        )
        yield stack.enter_context(gateway_running(place / "gateway.log", 1, "--config", str(place / "gateway.toml")))


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
