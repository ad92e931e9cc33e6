"""Rescheduling policies: which requests go elsewhere after they were sent? One file per policy."""
