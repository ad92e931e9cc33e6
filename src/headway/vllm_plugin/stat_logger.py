"""Stat logger for vLLM: passes the engines' metrics files on to vLLM's own `/metrics`.

The scheduler lives in the engine process and `/metrics` in the API process, on the same machine; vLLM's instance id
names the folder between them. vLLM loads this through the entry point `vllm.stat_logger_plugins`.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from vllm.v1.metrics.loggers import StatLoggerBase

from headway.vllm_plugin.config import read_config
from headway.vllm_plugin.plugin_log import logger
from headway.vllm_plugin.publishing import metrics_folder


class EngineFiles:
    """A Prometheus collector over the metrics files of one vLLM instance; read at every scrape."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        """The families of all engines of this machine, samples of the same name together."""
        families: dict[str, Any] = {}
        for file in sorted(self._folder.glob("engine-*.prom")):
            try:
                written = list(text_string_to_metric_families(file.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue  # the engine has just ended, or the file is no engine's: vLLM's own metrics must not suffer
            for family in written:
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
        yield from families.values()


class HeadwayStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Registers `EngineFiles` once per process, if our scheduler runs. Ignores vLLM's own statistics."""

    _registered: set[Path] = set()  # noqa: RUF012 - one a process, as Prometheus' registry is

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        scheduler = str(getattr(vllm_config.scheduler_config, "scheduler_cls", "") or "")
        if "headway" not in scheduler:
            return
        if getattr(vllm_config.parallel_config, "_api_process_count", 1) > 1:
            logger.warning(
                "headway: with several API servers vLLM's /metrics cannot carry the engines' metrics: set metrics_dir "
                "and scrape the files in it, or start with --api-server-count 1"
            )
            return
        config = read_config(getattr(vllm_config, "additional_config", None))
        folder = metrics_folder(config.metrics_dir, str(getattr(vllm_config, "instance_id", "") or ""))
        if folder is not None and folder not in self._registered:
            self._registered.add(folder)
            REGISTRY.register(EngineFiles(folder))
            if config.metrics_dir is None:  # `vllm serve` kills engines before they could remove it
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
            logger.info("headway: /metrics carries the metrics that engines write to %s", folder)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """Ignore vLLM's statistics of one step."""

    def log_engine_initialized(self) -> None:
        """Log nothing."""
