"""A lease as an object of Kubernetes' API server, a `Lease` of `coordination.k8s.io/v1`.

Law: the object is replaced only as it was read: the API server refuses another `resourceVersion` with 409.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from headway.gateway.discovery.kubernetes_api import ApiServerFault, KubernetesApi
from headway.gateway.leadership.lease import LeaseFault, SeenLease

_CONFLICT, _MISSING = 409, 404


class _LeaseSpec(msgspec.Struct, rename="camel"):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    lease_transitions: int | None = None


class _LeaseMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""


class _LeaseObject(msgspec.Struct):
    metadata: _LeaseMeta
    spec: _LeaseSpec = msgspec.field(default_factory=_LeaseSpec)


class ApiLeaseStore:
    """The record as an object. It is made where there is none; rights: get, create and update on leases."""

    def __init__(self, place: str, seconds: float, api: KubernetesApi) -> None:
        """`place` is NAMESPACE/NAME; `seconds` stand for the time of an object that has none."""
        namespace, _, self._name = place.partition("/")
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._seconds = seconds
        self._api = api
        self._read: _LeaseObject | None = None

    async def read(self) -> SeenLease:
        """The record. Raises LeaseFault."""
        try:
            answer = await self._api.ask("GET", f"{self._path}/{self._name}")
            self._read = found = msgspec.json.decode(answer, type=_LeaseObject)
        except ApiServerFault as fault:
            if fault.status != _MISSING:
                raise LeaseFault(str(fault)) from None
            self._read = None
            return SeenLease("", self._seconds, "")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise LeaseFault(f"the API server's answer is no lease: {error}") from None
        seconds = found.spec.lease_duration_seconds or self._seconds
        return SeenLease(found.spec.holder_identity or "", seconds, found.metadata.resource_version)

    async def write(self, holder: str, seconds: float, version: str) -> bool:
        """Replace the record of this version; False if it has changed. Raises LeaseFault."""
        try:
            if version:
                await self._api.ask("PUT", f"{self._path}/{self._name}", body=self._object(holder, seconds, version))
            else:
                await self._api.ask("POST", self._path, body=self._object(holder, seconds, ""))
        except ApiServerFault as fault:
            if fault.status in (_CONFLICT, _MISSING):  # others were faster
                return False
            raise LeaseFault(str(fault)) from None
        return True

    async def close(self) -> None:
        """Close its connections."""
        await self._api.close()

    def _object(self, holder: str, seconds: float, version: str) -> dict[str, Any]:
        before = _LeaseSpec() if self._read is None else self._read.spec
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_same = before.holder_identity == holder and before.acquire_time is not None
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, **({"resourceVersion": version} if version else {})},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": int(seconds),
                "acquireTime": before.acquire_time if is_same else now,
                "renewTime": now,
                "leaseTransitions": (before.lease_transitions or 0) + (not is_same),
            },
        }
