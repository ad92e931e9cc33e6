"""The metrics files of engines pass on to vLLM's `/metrics`, and no other file there takes these away."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest


def test_a_file_that_is_no_engines_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loggers = ModuleType("vllm.v1.metrics.loggers")
    loggers.StatLoggerBase = object  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.v1", "vllm.v1.metrics"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, loggers.__name__, loggers)
    monkeypatch.delitem(sys.modules, "headway.vllm_plugin.stat_logger", raising=False)
    from headway.vllm_plugin.stat_logger import EngineFiles

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
    (family,) = EngineFiles(tmp_path).collect()
    assert [sample.labels["engine"] for sample in family.samples] == ["0", "5"]
    del sys.modules["headway.vllm_plugin.stat_logger"]
