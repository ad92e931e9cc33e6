"""Replicas behind the gateway: their health, their load, and the requests they have in flight."""
