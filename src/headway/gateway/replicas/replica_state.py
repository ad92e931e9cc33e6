"""State of one replica: what the gateway has learned of its health, its models and its load so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from headway.gateway.replicas.failure_share import FailureShare
from headway.gateway.replicas.load_report import LoadReport


class Health(StrEnum):
    """Whether requests may be sent to a replica."""

    UNKNOWN = "unknown"
    UP = "up"
    EJECTED = "ejected"
    LEAVING = "leaving"


@dataclass(slots=True)
class ReplicaState:
    """What changes about a replica. Times are seconds on the gateway's clock."""

    health: Health = Health.UNKNOWN
    failures: int = 0  # of requests and probes, in a row
    failed_probes: int = 0  # in a row
    ejections: int = 0  # in a row
    ejections_total: int = 0
    ejections_withheld: int = 0  # by the bounds, in all
    refusals_total: int = 0  # of requests, because it has too many
    is_failing: bool = False  # ejected for failures of requests: counts against the bounds
    is_spared: bool = False  # up only because of the bounds
    failure_share: FailureShare = field(default_factory=FailureShare)  # of requests
    changed_at: float = -math.inf  # of `health`
    probe_at: float = -math.inf
    makes_progress: bool = False  # since the latest look for a stall
    progress_at: float = -math.inf  # of the latest look that saw an answer move, or no request
    silent_since: float | None = None  # since when its metrics hang, which came before
    models: Mapping[str, object] | None = None  # its /v1/models by id, as it wrote them; None until it answered
    adapter_parents: Mapping[str, str] = field(default_factory=dict)  # its LoRA adapters -> their base models
    lists_changed: int = 0  # how often its list of models and adapters changed
    models_withheld: str = ""  # why it does not list its models, where it wants another key for that
    report: LoadReport = field(default_factory=LoadReport)
    asked_at: float = -math.inf  # when the latest metrics that were read were asked for
    reported_at: dict[str, float] = field(default_factory=dict)  # figure of the report -> when it last came
    other_requests: int = 0  # there, not sent by this gateway, by its latest metrics
    other_kv_tokens: int = 0  # KV memory of those, likewise
    preemptions: int | None = None  # in its engine, by its latest metrics that count them
    new_preemptions: int = 0  # of those, the ones that no policy has learned of
    last_failure: str = ""
