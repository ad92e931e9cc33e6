"""The scheduler's numbers in vLLM's own `/metrics`: a stat-logger plug-in that passes the engines' metrics files on.

The scheduler lives in the engine process and `/metrics` in the API process, on the same machine; the file between them
is found by vLLM's instance id. vLLM loads this through the entry point `vllm.stat_logger_plugins`.
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
from headway.vllm_plugin.publishing import logger, metrics_folder


class EngineFiles:
    """A Prometheus collector over the metrics files of one vLLM instance; read when somebody scrapes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Any]:
        """The families of all engines of this machine, samples of the same name together."""
        families: dict[str, Any] = {}
        for file in sorted(self._folder.glob("engine-*.prom")):
            try:
                text = file.read_text(encoding="utf-8")
            except OSError:
                continue  # the engine has just gone
            for family in text_string_to_metric_families(text):
                known = families.setdefault(family.name, family)
                if known is not family:
                    known.samples.extend(family.samples)
        yield from families.values()


class HeadwayStatLogger(StatLoggerBase):  # type: ignore[misc]
    """Registers `EngineFiles` once; vLLM's own statistics pass it by. Without our scheduler it does nothing."""

    _registered: set[Path] = set()  # noqa: RUF012 - one a process, as Prometheus' registry is

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        wanted = str(getattr(vllm_config.scheduler_config, "scheduler_cls", "") or "")
        if "headway" not in wanted:
            return
        if getattr(vllm_config.parallel_config, "_api_process_count", 1) > 1:
            logger.warning(
                "headway: with several API servers vLLM's /metrics cannot carry the engines' numbers: set metrics_dir "
                "and scrape the files in it, or start with --api-server-count 1"
            )
            return
        config = read_config(getattr(vllm_config, "additional_config", None))
        folder = metrics_folder(config.metrics_dir, str(getattr(vllm_config, "instance_id", "") or ""))
        if folder is not None and folder not in self._registered:
            self._registered.add(folder)
            REGISTRY.register(EngineFiles(folder))
            if config.metrics_dir is None:  # ours to remove; `vllm serve` kills engines before they could
                atexit.register(shutil.rmtree, folder, ignore_errors=True)
            logger.info("headway: /metrics carries what engines write to %s", folder)

    def record(self, *args: Any, **kwargs: Any) -> None:
        """vLLM's statistics of one step: not ours."""

    def log_engine_initialized(self) -> None:
        """Nothing to say."""
