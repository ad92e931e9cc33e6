"""Metrics of the process agree with what the system tells of it."""

from __future__ import annotations

import platform
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import process_collector
from prometheus_client.parser import text_string_to_metric_families as parsed

from headway.gateway.observing import process_metrics
from headway.version import __version__

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has /proc")


def figures() -> dict[str, float]:
    text = "".join(process_metrics.process_metrics())
    return {sample.name: sample.value for family in parsed(text) for sample in family.samples}


@LINUX
def test_names_kinds_and_values_are_those_of_prometheus_own_client() -> None:
    theirs = {family.name: family for family in process_collector.ProcessCollector(registry=None).collect()}
    ours = {family.name: family for family in parsed("".join(process_metrics.process_metrics()))}
    assert {name: family.type for name, family in ours.items()} == {
        name: family.type for name, family in theirs.items()
    }
    mine = figures()
    for name in ("process_start_time_seconds", "process_max_fds"):
        assert mine[name] == pytest.approx(theirs[name].samples[0].value, abs=0.02)
    for name in ("process_virtual_memory_bytes", "process_resident_memory_bytes"):
        assert mine[name] == pytest.approx(theirs[name].samples[0].value, rel=0.2)
    assert mine["process_cpu_seconds_total"] == pytest.approx(time.process_time(), abs=0.5)


@LINUX
def test_open_files_are_counted(tmp_path: Path) -> None:
    before = figures()["process_open_fds"]
    with ExitStack() as stack:
        for number in range(100):
            stack.enter_context((tmp_path / str(number)).open("w"))
        assert figures()["process_open_fds"] == before + 100
    # As where the kernel does not tell how many there are: in steps, between which the event loop goes on.
    steps = list(process_metrics.files_in(tmp_path))
    assert steps[-1] == 100
    assert len(steps) >= 5


def test_the_build_is_named() -> None:
    (family,) = parsed("".join(process_metrics.build_metrics()))
    (sample,) = family.samples
    assert (sample.name, sample.value) == ("headway_build_info", 1.0)
    assert sample.labels == {"version": __version__, "python": platform.python_version()}
