"""Waits by reason, metrics as a scraper reads them, files that never stop a step, lookups within their budget."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from headway.domain.request import Request
from headway.vllm_plugin.plugin_metrics import DESCRIPTIONS, PluginMetrics
from headway.vllm_plugin.prefix_hits import PrefixHits
from headway.vllm_plugin.publishing import Publisher, metrics_folder
from headway.vllm_plugin.request_entries import EngineBatch, Entry
from headway.vllm_plugin.wait_clocks import WaitClocks, in_words
from headway.vllm_plugin.xargs_hints import NO_HINTS
from tests.support.vllm_stub import StubRequest


def entry(prompt: int = 100, hashes: int = 3) -> Entry:
    request: Any = StubRequest("r", prompt)
    request.block_hashes = list(range(hashes))
    return Entry(request, Request("r", 0.0, prompt), NO_HINTS, 0)


def test_a_wait_is_told_by_reason() -> None:
    clocks = WaitClocks()
    clocks.scanned("seats", 0.0)
    started = clocks.reading(1.0)
    clocks.scanned("blocks", 3.0)
    clocks.scanned("idle", 3.5)
    wait = clocks.wait(0, started, clocks.reading(3.5))
    assert wait == (2.5, {"seats": 2.0, "blocks": 0.5}, 0)
    assert in_words(wait) == "waited 2.50 s (2.00 s seats, 0.50 s blocks); nobody overtook it"


def test_those_who_overtook_are_counted() -> None:
    clocks = WaitClocks()
    clocks.admit(9)
    began = clocks.reading(0.0)
    for arrival in (1, 5, 6, 7):
        clocks.admit(arrival)
    ended = clocks.reading(0.0)
    for arrival in (2, 8):
        clocks.admit(arrival)
    wait = clocks.wait(2, began, ended)
    assert wait.overtaken_by == 3, "9 was in before it came, 1 had come before it, and 8 went after it"
    assert "3 later ones came in before it" in in_words(wait)


def test_metrics_are_what_a_scraper_reads() -> None:
    metrics = PluginMetrics("fcfs", "0")
    metrics.count("preemptions", 2)
    metrics.show("waiting", 7, 'state="queued"')
    for seconds in (0.005, 0.2, 1_000.0):
        metrics.waited("short", seconds)
    lines = metrics.text().splitlines()
    sample = re.compile(r'^headway_\w+\{(\w+="[^"]*",?)+\} [-+.\deInf]+$')
    assert all(sample.match(line) or line.startswith(("# HELP headway_", "# TYPE headway_")) for line in lines)
    labels = 'engine="0",ordering="fcfs"'
    assert f"headway_preemptions_total{{{labels}}} 2" in lines
    assert f'headway_waiting{{{labels},state="queued"}} 7' in lines
    assert f'headway_wait_seconds_bucket{{{labels},length="short",le="0.25"}} 2' in lines
    assert f'headway_wait_seconds_bucket{{{labels},length="short",le="+Inf"}} 3' in lines
    assert f'headway_fallbacks_total{{{labels},reason="raised"}} 0' in lines, "an alarm needs the zero too"
    assert len([line for line in lines if line.startswith("# TYPE")]) == len(
        {line for line in lines if line.startswith("# TYPE")}
    )


def test_every_metric_is_described() -> None:
    metrics = PluginMetrics("fcfs", "0")
    for name in DESCRIPTIONS:
        if not name.endswith("_seconds") or name == "policy_seconds":
            metrics.count(name)
    assert metrics.text()


def test_files_are_written_and_the_dead_one_is_removed(tmp_path: Path) -> None:
    publisher = Publisher(tmp_path / "deep" / "engine-0.prom", tmp_path / "log.jsonl", own_folder=True)
    assert publisher.logs_decisions
    publisher.metrics("one\n")
    publisher.decision("{}")
    publisher.metrics("two\n")
    publisher.close()
    publisher.close()
    assert (tmp_path / "log.jsonl").read_text() == "{}\n"
    assert not (tmp_path / "deep").exists()


def test_nothing_wanted_starts_no_thread(tmp_path: Path) -> None:
    publisher = Publisher(None, None)
    assert publisher._thread is None
    publisher.metrics("x")
    publisher.decision("y")
    publisher.close()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"headway: .* cannot be written: "):
        Publisher(tmp_path / "file" / "engine-0.prom", None)
    with pytest.raises(ValueError, match=r"headway: .* cannot be written: "):
        Publisher(None, tmp_path / "missing" / "log")


def test_both_processes_find_the_same_folder() -> None:
    assert metrics_folder(None, "abc12") == metrics_folder(None, "abc12")
    assert metrics_folder(None, "") is None
    assert metrics_folder("", "abc12") is None
    assert metrics_folder("/some/where", "abc12") == Path("/some/where")


class Ticks:
    """A timer by which every lookup takes a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0005
        return self.now


def test_lookups_stop_when_the_budget_is_spent() -> None:
    asked = []

    def lookup(hashes: Any, most: int) -> int:
        asked.append((len(hashes), most))
        return 64

    hits = PrefixHits(lookup, Ticks(), blocks_max=2, seconds_per_step=0.001)
    some = [entry() for _ in range(5)]
    for one in some:
        hits.arrive(one, 0.0)
    assert asked == [(2, 99), (2, 99)], "two blocks of three, two requests of five"
    assert [one.view.cached_prompt_tokens for one in some] == [64, 64, 0, 0, 0]
    hits.begin_step()
    assert hits.refresh(some[4], 0.0), "whoever was not asked about is asked about as a head"
    assert not hits.refresh(some[4], 0.5), "half a second old is young enough"
    assert (hits.lookups, hits.hit_tokens) == (3, 192)


def test_nothing_to_look_up() -> None:
    def lookup(hashes: Any, most: int) -> int:
        raise AssertionError("there is nothing to look up")

    hits = PrefixHits(lookup, Ticks())
    hits.arrive(entry(hashes=0), 0.0)
    private = entry()
    private.request.skip_reading_prefix_cache = True  # type: ignore[attr-defined]
    hits.arrive(private, 0.0)
    assert hits.lookups == 0


def test_the_batch_changes_when_somebody_joins_or_leaves() -> None:
    batch, one = EngineBatch(), entry()
    batch.join(one)
    one.request.num_output_tokens = 3  # type: ignore[misc]
    assert [view.produced_tokens for view in batch.running()] == [3]
    version = batch.version
    batch.leave("stranger")
    assert (batch.version, batch.size) == (version, 1)
    batch.leave("r")
    assert (batch.version, batch.size) == (version + 1, 0)
