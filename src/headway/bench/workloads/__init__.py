"""Workloads: traffic generated from published statistics, by name."""

from headway.bench.workloads.chat import CHAT, CHAT_AND_DOCUMENTS
from headway.bench.workloads.workload import Workload

WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in (CHAT_AND_DOCUMENTS, CHAT)}
"""Name -> workload; the first is what `headway compare` takes when no trace is named."""

__all__ = ["WORKLOADS", "Workload"]
