"""Admission policies: may the head of the queue join the batch now? One file per policy."""
