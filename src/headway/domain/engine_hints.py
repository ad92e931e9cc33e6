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
NAMES = (EXPECTED_TOKENS, DEADLINE_MS, TENANT, SESSION, RANK, CLASS)

MAX_EXPECTED_TOKENS = 1_000_000
MAX_DEADLINE_MS = 3_600_000  # an hour: a request with more time has no deadline
MAX_TEXT = 64  # characters of a tenant or session
MAX_RANK = 1_000_000_000
