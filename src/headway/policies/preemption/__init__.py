"""Preemption policies: which running request gives way? One file per policy."""
