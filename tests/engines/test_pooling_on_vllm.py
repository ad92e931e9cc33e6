"""Paths beside `/v1` that engines serve, through the gateway: tokenizing, pooling, scores and ranks of a real vLLM.

One engine with the written model as a model of embeddings. It runs only on request, as `test_gateway_on_vllm.py`.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engines.served_vllm import (
    WANTED,
    WHY_SKIPPED,
    environment,
    free_port,
    gateway_running,
    is_there,
    running,
    until,
    vllm_command,
    without_ours,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(not WANTED, reason=WHY_SKIPPED),
]
TEXTS = ["each word has a number", "no word is longer", "each word has a number"]


@pytest.fixture(scope="module")
def gateway(place: Path) -> Iterator[str]:
    """The URL of a gateway in front of one engine."""
    port = free_port()
    command = vllm_command(without_ours(place), port, "--runner", "pooling", "--convert", "embed")
    with running(command, environment(place), place / "vllm.log") as server:
        until(lambda: is_there(f"http://127.0.0.1:{port}/health"), server)
        with gateway_running(place / "gateway.log", 1, "--replica", f"http://127.0.0.1:{port}") as url:
            yield url


def asked(gateway: str, path: str, **body: object) -> Any:
    content = json.dumps({"model": "tiny", **body}).encode()
    request = urllib.request.Request(gateway + path, content, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as told:
        return json.load(told)


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_scores_and_ranks(gateway: str, prefix: str) -> None:
    scores = [one["score"] for one in asked(gateway, prefix + "/score", text_1=TEXTS[0], text_2=TEXTS)["data"]]
    assert scores[0] == pytest.approx(1, abs=1e-4)
    assert scores[2] == pytest.approx(1, abs=1e-4)
    assert scores[1] < 0.9
    ranked = asked(gateway, prefix + "/rerank", query=TEXTS[0], documents=TEXTS)["results"]
    assert ranked[-1]["index"] == 1


def test_a_text_becomes_tokens_and_a_text_again(gateway: str) -> None:
    tokens = asked(gateway, "/tokenize", prompt=TEXTS[0], add_special_tokens=False)["tokens"]
    assert tokens
    assert asked(gateway, "/detokenize", tokens=tokens)["prompt"] == TEXTS[0]


def test_pooling_gives_what_embeddings_does(gateway: str) -> None:
    (pooled,) = asked(gateway, "/pooling", input=TEXTS[0])["data"]
    (embedded,) = asked(gateway, "/v1/embeddings", input=TEXTS[0])["data"]
    assert pooled["data"] == pytest.approx(embedded["embedding"], abs=1e-5)
