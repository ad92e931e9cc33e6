"""Routing policies: on which replica does a request run? One file per policy."""
