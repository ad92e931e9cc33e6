"""Rows of the Batch API's database: its tables, and what a row of each holds.

Times are whole seconds since 1970, as OpenAI's API gives them.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import NamedTuple


class BatchStatus(StrEnum):
    """Where an API batch stands, in OpenAI's words."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    CANCELLING = "cancelling"
    COMPLETED = "completed"
    FAILED = "failed"  # its input file is not valid; no request was sent
    EXPIRED = "expired"
    CANCELLED = "cancelled"


OPEN = (BatchStatus.VALIDATING, BatchStatus.IN_PROGRESS, BatchStatus.CANCELLING)
"""Of batches that have not ended."""


class LineState(IntEnum):
    """Where one line of an input file stands. From the last two there is no way back."""

    WAITING = 0
    SENT = 1
    ANSWERED = 2  # it is in the output file
    FAILED = 3  # it is in the error file


class StoredFile(NamedTuple):
    """A file of the API, whole and on the disk."""

    seq: int
    id: str
    owner: str
    purpose: str
    name: str
    bytes: int
    created_at: int
    expires_at: int | None


class ApiBatch(NamedTuple):
    """One batch.

    Attributes:
        seq: its number, in order of creation.
        owner: the tenant whose key made it; "" without keys.
        output_id: id of the file of its answers, from the beginning; `error_id` likewise.
        window: its `completion_window`, as it was asked for.
        metadata: JSON object, or "" for none.
        results_seconds: how long its result files are kept.
        model: of all its lines; "" where they differ.
        errors: JSON list of the faults of its input file, or "" for none.
        total: its lines; None until they are validated.
        output_bytes: of the answers that are recorded; what the file has beyond is not. `error_bytes` likewise.
    """

    seq: int
    id: str
    owner: str
    status: str
    endpoint: str
    input_id: str
    output_id: str
    error_id: str
    window: str
    metadata: str
    results_seconds: int | None
    model: str
    errors: str
    total: int | None
    completed: int
    failed: int
    output_bytes: int
    error_bytes: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.status in OPEN


class TakenLine(NamedTuple):
    """A line that is to be sent. `custom_id` is JSON as its client wrote it; `try_number` counts this one."""

    number: int
    custom_id: bytes
    try_number: int
    body: bytes


class LineResult(NamedTuple):
    """How a line ended: its place, whether it goes to the output file, its text there, and its tokens."""

    batch: int
    number: int
    is_answer: bool
    text: bytes
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


VERSION = 1
SCHEMA = f"""
CREATE TABLE file (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, purpose TEXT NOT NULL,
    name TEXT NOT NULL, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER
);
CREATE INDEX file_of_owner ON file (owner, seq);
CREATE TABLE batch (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL, status TEXT NOT NULL,
    endpoint TEXT NOT NULL, input_id TEXT NOT NULL, output_id TEXT NOT NULL, error_id TEXT NOT NULL,
    window TEXT NOT NULL, metadata TEXT NOT NULL, results_seconds INTEGER, model TEXT NOT NULL DEFAULT '',
    errors TEXT NOT NULL DEFAULT '', total INTEGER, completed INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    output_bytes INTEGER NOT NULL DEFAULT 0, error_bytes INTEGER NOT NULL DEFAULT 0,
    input_tokens INTEGER NOT NULL DEFAULT 0, cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0, created_at INTEGER NOT NULL, in_progress_at INTEGER,
    expires_at INTEGER NOT NULL, finalizing_at INTEGER, completed_at INTEGER, failed_at INTEGER,
    expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER
);
CREATE INDEX batch_of_owner ON batch (owner, seq);
CREATE INDEX batch_of_input ON batch (input_id);
CREATE TABLE line (
    batch INTEGER NOT NULL, number INTEGER NOT NULL, start INTEGER NOT NULL, bytes INTEGER NOT NULL,
    custom_id BLOB NOT NULL, tries INTEGER NOT NULL DEFAULT 0, state INTEGER NOT NULL DEFAULT {LineState.WAITING},
    PRIMARY KEY (batch, number)
) WITHOUT ROWID;
CREATE INDEX line_waiting ON line (batch, number) WHERE state = {LineState.WAITING};
PRAGMA user_version = {VERSION};
"""
