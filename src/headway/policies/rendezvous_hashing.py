"""Rendezvous hashing: a ranking of the replicas for each key, the same wherever it is made, without a table.

Source: D. Thaler, C. Ravishankar, Using Name-Based Mappings to Increase Hit Rates, IEEE/ACM Transactions on Networking
6(1), 1998. Where a replica leaves, only the keys that it ranked first for move.
"""

from __future__ import annotations

from hashlib import blake2b


def rendezvous_score(key: str, replica_id: str) -> bytes:
    """The replica's score for a key; the highest ranks first."""
    return blake2b(f"{len(key)}/{key}/{replica_id}".encode(), digest_size=8).digest()
