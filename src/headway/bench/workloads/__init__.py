"""Workloads: traffic generated from published statistics, by name."""

from headway.bench.workloads.bursts import BURSTS
from headway.bench.workloads.chat import CHAT, CHAT_AND_DOCUMENTS
from headway.bench.workloads.client_mixes import CLIENT_MIX, REASONING, TENANTS
from headway.bench.workloads.coding_agents import CODING_AGENTS
from headway.bench.workloads.workload import Workload

WORKLOADS: dict[str, Workload] = {
    workload.name: workload
    for workload in (CHAT_AND_DOCUMENTS, CHAT, REASONING, CODING_AGENTS, BURSTS, TENANTS, CLIENT_MIX)
}
"""Name -> workload; the first is what `headway compare` takes when no trace is named."""

__all__ = ["WORKLOADS", "Workload"]
