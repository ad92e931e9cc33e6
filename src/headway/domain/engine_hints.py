"""Names and bounds of the hints in `vllm_xargs`: the gateway writes them, the vLLM plug-in reads them."""

EXPECTED_TOKENS = "headway_expected_tokens"
DEADLINE_MS = "headway_deadline_ms"
TENANT = "headway_tenant"
SESSION = "headway_session"
RANK = "headway_rank"
CLASS = "headway_class"
"""Class of the request: "online" or "offline"."""
EXACT_KV = "headway_exact_kv"  # of clients alone, so not among those that a gateway writes
REQUEST_SESSION = "headway-request-"
"""How a session id begins by which the gateway knows a request's KV events: it says nothing of a session."""
TPOT_MS = "headway_tpot_ms"
END_DEADLINE_MS = "headway_end_deadline_ms"
PROGRAM = "headway_program"
PROGRAM_STAGE = "headway_program_stage"
PROGRAM_STAGES = "headway_program_stages"
PROGRAM_DEADLINE_MS = "headway_program_deadline_ms"
LATER_NAMES = (TPOT_MS, END_DEADLINE_MS, PROGRAM, PROGRAM_STAGE, PROGRAM_STAGES, PROGRAM_DEADLINE_MS)
"""Deadlines after the first token, and the place in a program (`domain/later_deadlines.py`)."""
NAMES = (EXPECTED_TOKENS, DEADLINE_MS, TENANT, SESSION, RANK, CLASS, *LATER_NAMES)

MAX_EXPECTED_TOKENS = 1_000_000
MAX_DEADLINE_MS = 3_600_000  # an hour: a request with more time has no deadline
MAX_PROGRAM_MS = 86_400_000  # a day
MAX_STAGES = 100_000
MAX_TEXT = 64  # characters of a tenant, session or program
MAX_RANK = 1_000_000_000
