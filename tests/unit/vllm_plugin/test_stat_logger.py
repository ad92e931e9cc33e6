"""The metrics files of engines pass on to vLLM's `/metrics`, and no other file there takes these away."""

from __future__ import annotations

import atexit
import logging
import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest


@cache
def loaded() -> Any:
    """The module, loaded once, with a stand-in for vLLM's base class."""
    loggers = ModuleType("vllm.v1.metrics.loggers")
    loggers.StatLoggerBase = object  # type: ignore[attr-defined]
    names = ("vllm", "vllm.v1", "vllm.v1.metrics")
    with mock.patch.dict(sys.modules, {**{name: ModuleType(name) for name in names}, loggers.__name__: loggers}):
        module = import_module("headway.vllm_plugin.stat_logger")
    sys.modules[module.__name__] = module  # `patch.dict` took it away with the rest
    return module


@pytest.fixture
def stat_logger(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with a registry of its own and no folder registered."""
    module = loaded()
    monkeypatch.setattr(module, "REGISTRY", CollectorRegistry())
    monkeypatch.setattr(module.HeadwayStatLogger, "_registered", set())
    return module


def test_a_file_that_is_no_engines_is_left_out(tmp_path: Path, stat_logger: Any) -> None:
    for name, content in (
        ("0", b'headway_steps_total{engine="0"} 1\n'),
        ("1", b"\xff\xfe\x00"),
        ("2", b'headway_steps_total{engine="2" 1\n'),
        ("3", b"headway_steps_total nonsense\n"),
        ("4", b""),
        ("5", b'headway_steps_total{engine="5"} 2\n'),
    ):
        (tmp_path / f"engine-{name}.prom").write_bytes(content)
    (tmp_path / "engine-6.prom").mkdir()
    (tmp_path / "other.prom").write_bytes(b'headway_steps_total{engine="9"} 2\n')
    (family,) = stat_logger.EngineFiles(tmp_path).collect()
    assert [sample.labels["engine"] for sample in family.samples] == ["0", "5"]


def vllm_config(scheduler: str = "headway.vllm_plugin.Scheduler", **changes: Any) -> SimpleNamespace:
    fields: dict[str, Any] = {
        "scheduler_config": SimpleNamespace(scheduler_cls=scheduler),
        "parallel_config": SimpleNamespace(_api_process_count=1),
        "additional_config": None,
        "instance_id": "abc12",
    }
    return SimpleNamespace(**fields | changes)


@pytest.fixture
def at_exit(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    registered: list[tuple[object, ...]] = []
    monkeypatch.setattr(atexit, "register", lambda *what, **how: registered.append((*what, how)))
    return registered


def scraped(stat_logger: Any) -> str:
    return str(generate_latest(stat_logger.REGISTRY).decode())


def test_the_files_of_an_instance_are_on_its_page_once(
    stat_logger: Any,
    at_exit: list[tuple[object, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with caplog.at_level(logging.INFO, "vllm.headway"):
        for index in range(2):  # vLLM makes one for each engine
            logger = stat_logger.HeadwayStatLogger(vllm_config(), index)
    assert logger.record("anything") is None
    assert logger.log_engine_initialized() is None
    assert len(caplog.messages) == 1
    assert "/metrics carries the metrics that engines write to" in caplog.messages[0]
    ((_, folder, how),) = at_exit
    assert str(folder).endswith("-abc12")
    assert how == {"ignore_errors": True}
    Path(str(folder)).mkdir()
    (Path(str(folder)) / "engine-0.prom").write_text('# TYPE headway_lanes gauge\nheadway_lanes{engine="0"} 2\n')
    assert 'headway_lanes{engine="0"} 2.0' in scraped(stat_logger)
    stat_logger.HeadwayStatLogger(vllm_config(instance_id="other"))
    assert len(at_exit) == 2, "another instance has files of its own"


def test_a_folder_that_was_configured_stays(
    stat_logger: Any, at_exit: list[tuple[object, ...]], tmp_path: Path
) -> None:
    (tmp_path / "engine-0.prom").write_text('# TYPE headway_lanes gauge\nheadway_lanes{engine="0"} 2\n')
    stat_logger.HeadwayStatLogger(vllm_config(additional_config={"headway": {"metrics_dir": str(tmp_path)}}))
    assert "headway_lanes" in scraped(stat_logger)
    assert at_exit == []


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({"scheduler": ""}, False),
        ({"scheduler": "another.Scheduler"}, False),
        ({"parallel_config": SimpleNamespace(_api_process_count=2)}, True),
        ({"additional_config": {"headway": {"metrics_dir": ""}}}, False),
        ({"instance_id": ""}, False),
    ],
)
def test_where_there_is_nothing_to_pass_on(
    changes: dict[str, Any],
    warned: bool,
    stat_logger: Any,
    at_exit: list[tuple[object, ...]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    stat_logger.HeadwayStatLogger(vllm_config(**changes))
    assert list(stat_logger.REGISTRY.collect()) == []
    assert at_exit == []
    assert ["set metrics_dir" in message for message in caplog.messages] == [True] * warned


def test_a_server_of_a_version_that_counts_no_api_processes_has_one(
    stat_logger: Any, at_exit: list[tuple[object, ...]]
) -> None:
    stat_logger.HeadwayStatLogger(vllm_config(parallel_config=SimpleNamespace()))
    assert len(at_exit) == 1
