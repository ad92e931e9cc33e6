"""Replicas of an `InferencePool` of Kubernetes: its pods that are ready, watched on the API server.

Source: API reference of `inference.networking.k8s.io/v1` (Gateway API Inference Extension): a pool selects pods of its
own namespace by labels, and each of its target ports is an endpoint of each pod.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgspec

from headway.gateway.discovery.kubernetes_api import KubernetesApi
from headway.gateway.discovery.object_watch import ObjectWatch
from headway.gateway.discovery.replica_source import Findings, FoundReplica, SourceReport

_AGAIN_SECONDS = 5.0  # after a fault of our own
log = logging.getLogger("headway.gateway")
_GROUP = "inference.networking.k8s.io/v1"


class _Port(msgspec.Struct):
    number: int


class _Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str] = {}


class _PoolSpec(msgspec.Struct, rename="camel"):
    selector: _Selector = msgspec.field(default_factory=_Selector)
    target_ports: list[_Port] = []


class _PoolObject(msgspec.Struct):
    spec: _PoolSpec = msgspec.field(default_factory=_PoolSpec)


@dataclass(frozen=True, slots=True)
class _Pool:
    labels: Mapping[str, str]
    ports: tuple[int, ...]


class _Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class _PodStatus(msgspec.Struct, rename="camel"):
    pod_ip: str | None = msgspec.field(name="podIP", default=None)
    conditions: list[_Condition] | None = None


class _PodMeta(msgspec.Struct, rename="camel"):
    deletion_timestamp: str | None = None


class _PodObject(msgspec.Struct):
    metadata: _PodMeta = msgspec.field(default_factory=_PodMeta)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


@dataclass(frozen=True, slots=True)
class _Pod:
    """`missing` says why it is no replica now; "" if it is one."""

    address: str
    missing: str


_POOL, _POD = msgspec.json.Decoder(_PoolObject), msgspec.json.Decoder(_PodObject)


def _read_pool(raw: msgspec.Raw) -> _Pool:
    spec = _POOL.decode(raw).spec
    return _Pool(spec.selector.match_labels, tuple(port.number for port in spec.target_ports))


def _read_pod(raw: msgspec.Raw) -> _Pod:
    pod = _POD.decode(raw)
    is_ready = any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
    missing = "" if is_ready else "is not ready"
    if pod.metadata.deletion_timestamp:
        missing = "is terminating"
    return _Pod(pod.status.pod_ip or "", missing)


class PoolSource:
    """Follows one pool and its pods. `pool` is NAMESPACE/NAME; for `kubeconfig` see `KubernetesApi`."""

    def __init__(self, pool: str, kubeconfig: str | None) -> None:
        self._kubeconfig = kubeconfig
        self._pool = pool
        self._namespace, _, self._name = pool.partition("/")
        self._spec: _Pool | None = None
        self._pods: Mapping[str, _Pod] = {}
        self._following: asyncio.Task[None] | None = None

    async def follow(self, tell: Callable[[Findings], None], report: SourceReport) -> None:
        """See `ReplicaSource`."""
        path = f"/apis/{_GROUP}/namespaces/{self._namespace}/inferencepools"
        watch = ObjectWatch(
            KubernetesApi(self._kubeconfig), path, {"fieldSelector": f"metadata.name={self._name}"}, _read_pool
        )
        try:
            await watch.follow(lambda pools: self._take_pool(pools.get(self._name), tell, report), report)
        finally:
            if self._following is not None:
                self._following.cancel()
                await asyncio.gather(self._following, return_exceptions=True)

    def _take_pool(self, pool: _Pool | None, tell: Callable[[Findings], None], report: SourceReport) -> None:
        if pool is None:
            report.failed(f"there is no InferencePool {self._pool}", self._name)
        elif not pool.labels or not pool.ports:  # an empty selector would select every pod of the namespace
            report.failed(f"the InferencePool {self._pool} has no matchLabels or no targetPorts", self._name)
        else:
            report.well(self._name)
        if pool == self._spec:
            return
        before, self._spec = self._spec, pool
        if pool is not None and before is not None and pool.labels == before.labels:  # the same pods at other ports
            self._take_pods(self._pods, tell)
            return
        if self._following is not None:
            self._following.cancel()
            self._following = None
        if pool is None or not pool.labels:
            self._pods = {}
            tell(Findings(frozenset()))
            return
        path = f"/api/v1/namespaces/{self._namespace}/pods"
        selector = ",".join(f"{label}={value}" for label, value in sorted(pool.labels.items()))
        watch = ObjectWatch(KubernetesApi(self._kubeconfig), path, {"labelSelector": selector}, _read_pod)
        self._following = asyncio.create_task(self._follow_pods(watch, tell, report))

    async def _follow_pods(
        self, watch: ObjectWatch[_Pod], tell: Callable[[Findings], None], report: SourceReport
    ) -> None:
        while True:
            try:
                await watch.follow(lambda pods: self._take_pods(pods, tell), report)
            except Exception:  # a fault of ours must not end the following of the pods
                log.exception("cannot follow the pods of %s", self._pool)
            await asyncio.sleep(_AGAIN_SECONDS)

    def _take_pods(self, pods: Mapping[str, _Pod], tell: Callable[[Findings], None]) -> None:
        before, self._pods = self._pods, pods
        ports = self._spec.ports if self._spec is not None else ()
        found: set[FoundReplica] = set()
        why_gone: dict[str, str] = {}
        for name, pod in pods.items():
            if not pod.address:
                continue
            for port in ports:
                one = FoundReplica(pod.address, port, name if len(ports) == 1 else f"{name}:{port}")
                if pod.missing:
                    why_gone[one.url] = f"pod {name} {pod.missing}"
                else:
                    found.add(one)
        for name, pod in before.items():
            now = pods.get(name)
            if pod.address and (now is None or now.address != pod.address):
                why = f"pod {name} is gone" if now is None else f"pod {name} has another address"
                why_gone |= {FoundReplica(pod.address, port).url: why for port in ports}
        tell(Findings(frozenset(found), why_gone))
