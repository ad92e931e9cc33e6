"""Answers of the gateway's own about models: the list, and one entry of it."""

from __future__ import annotations

import msgspec

from headway.gateway.openai.error_responses import Reason, error_response
from headway.gateway.queueing.dispatcher import Dispatcher
from headway.gateway.replicas.model_lists import listed_models, model_entry
from headway.gateway.wire.messages import Response


def models_answer(dispatcher: Dispatcher) -> Response:
    """`GET /v1/models`: what the replicas that are up list, and the aliases; 503 while none is."""
    if not any(replica.is_up for replica in dispatcher.replicas):  # an empty list would be a lie
        message = f"{dispatcher.entry_checks.why_unserved('')}, so no model is known; try again"
        retry_seconds = dispatcher.entry_checks.until_probe()
        return error_response(503, message, Reason.NO_REPLICA, retry_seconds=retry_seconds)
    models = listed_models(dispatcher.replicas, dispatcher.settings)
    return Response(200, msgspec.json.encode({"object": "list", "data": list(models.values())}))


def model_answer(dispatcher: Dispatcher, name: str) -> Response:
    """`GET /v1/models/NAME`, where all replicas list their models."""
    entry = model_entry(dispatcher.replicas, dispatcher.settings, name)
    if entry is None:
        message = f"no replica serves the model {name[:100]!r}; GET /v1/models lists the models"
        return error_response(404, message, Reason.UNKNOWN_MODEL)
    return Response(200, msgspec.json.encode(entry))
