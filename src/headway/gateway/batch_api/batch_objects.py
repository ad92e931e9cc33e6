"""Objects of the Batch API as JSON: files, batches and pages of them, as OpenAI writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from headway.gateway.batch_api.batch_rows import ApiBatch, BatchStatus, StoredFile
from headway.gateway.batch_api.input_lines import LineFault

_TIMES = (
    *("created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at", "expired_at"),
    *("cancelling_at", "cancelled_at"),
)


def file_object(file: StoredFile) -> dict[str, Any]:
    """One file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": file.created_at,
        "expires_at": file.expires_at,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def batch_object(batch: ApiBatch) -> dict[str, Any]:
    """One batch. The files of its results are named once it has ended."""
    has_results = not batch.is_open and batch.status != BatchStatus.FAILED
    used = batch.input_tokens + batch.output_tokens
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "model": batch.model or None,
        "errors": {"object": "list", "data": json.loads(batch.errors)} if batch.errors else None,
        "input_file_id": batch.input_id,
        "completion_window": batch.window,
        "status": batch.status,
        "output_file_id": (batch.output_id or None) if has_results else None,
        "error_file_id": (batch.error_id or None) if has_results else None,
        **{name: getattr(batch, name) for name in _TIMES},
        "request_counts": {"total": batch.total or 0, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.input_tokens,
            "input_tokens_details": {"cached_tokens": batch.cached_tokens},
            "output_tokens": batch.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": used,
        },
        "metadata": json.loads(batch.metadata) if batch.metadata else None,
    }


def faults_text(faults: Sequence[LineFault]) -> str:
    """Faults of an input file, as a batch keeps them."""
    return json.dumps([fault._asdict() for fault in faults])


def page(objects: Sequence[dict[str, Any]], limit: int) -> bytes:
    """A page of a list, of one object more than it may hold where there are more."""
    shown = objects[:limit]
    return json.dumps(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(objects) > limit,
        }
    ).encode()
