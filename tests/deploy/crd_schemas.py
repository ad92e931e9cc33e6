"""The parts of four custom resources' schemas that our manifests use, written down from their documentation.

Sources: Gateway API v1 (Gateway, HTTPRoute), Gateway API Inference Extension v1 (InferencePool), KEDA v1alpha1
(ScaledObject). They are stricter than the published ones: a field that we do not use is a mistake here.
"""

from __future__ import annotations

from typing import Any


def _object(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": fields, "additionalProperties": False}


def _list(items: dict[str, Any], least: int = 1, most: int = 64) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


TEXT = {"type": "string", "minLength": 1, "maxLength": 253}
COUNT = {"type": "integer", "minimum": 0}
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}, "maxProperties": 64}
DURATION = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}  # GEP-2257
BEHAVIOR = _object(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=_list(
        _object(
            ("type", "value", "periodSeconds"),
            type={"enum": ["Pods", "Percent"]},
            value={"type": "integer", "minimum": 1},
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)

SPECS: dict[tuple[str, str], dict[str, Any]] = {
    ("gateway.networking.k8s.io/v1", "Gateway"): _object(
        ("gatewayClassName", "listeners"),
        gatewayClassName=TEXT,
        listeners=_list(
            _object(
                ("name", "port", "protocol"),
                name=TEXT,
                port=PORT,
                protocol={"enum": ["HTTP", "HTTPS", "TLS", "TCP", "UDP"]},
            )
        ),
    ),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"): _object(
        ("parentRefs", "rules"),
        parentRefs=_list(_object(("name",), name=TEXT), most=32),
        rules=_list(
            _object(
                matches=_list(
                    _object(
                        path=_object(
                            type={"enum": ["Exact", "PathPrefix", "RegularExpression"]},
                            value={"type": "string", "pattern": "^/", "maxLength": 1024},
                        )
                    )
                ),
                backendRefs=_list(_object(("name",), group=TEXT, kind=TEXT, name=TEXT), most=16),
                timeouts=_object(request=DURATION, backendRequest=DURATION),
            ),
            most=16,
        ),
    ),
    ("inference.networking.k8s.io/v1", "InferencePool"): _object(
        ("selector", "targetPorts"),
        selector=_object(("matchLabels",), matchLabels=LABELS),
        targetPorts=_list(_object(("number",), number=PORT), most=8),
        endpointPickerRef=_object(
            ("name",),
            name=TEXT,
            port=_object(("number",), number=PORT),
            failureMode={"enum": ["FailOpen", "FailClose"]},
        ),
    ),
    ("keda.sh/v1alpha1", "ScaledObject"): _object(
        ("scaleTargetRef", "triggers"),
        scaleTargetRef=_object(("name",), name=TEXT),
        minReplicaCount=COUNT,
        maxReplicaCount=COUNT,
        pollingInterval=COUNT,
        cooldownPeriod=COUNT,
        advanced=_object(horizontalPodAutoscalerConfig=_object(behavior=_object(scaleUp=BEHAVIOR, scaleDown=BEHAVIOR))),
        triggers=_list(
            _object(
                ("type", "metadata"),
                type=TEXT,
                metricType={"enum": ["AverageValue", "Value", "Utilization"]},
                metadata={"type": "object", "additionalProperties": {"type": "string"}},
            )
        ),
    ),
}
