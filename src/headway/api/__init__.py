"""The Python API: read a trace, compare policies on it, look at what came out.

    import headway as hw

    trace = hw.load_trace("my-trace.jsonl")
    result = hw.compare(trace, orderings=["fcfs", MyPolicy, MyPolicy(option=3)], loads=[0.9])
    result.to_dataframe()

These names are stable: docs/api.md lists them all, and says how one would go.
"""

from headway.api.comparison_result import ComparisonResult, compare
from headway.api.replica_model import ReplicaModel as Replica
from headway.api.trace_sources import load_trace
from headway.bench.traces.loading import LoadedTrace
from headway.bench.user_mistake import UserMistake

__all__ = ["ComparisonResult", "LoadedTrace", "Replica", "UserMistake", "compare", "load_trace"]
