"""Budgets of API keys: how much each may still use, and when it may use more."""
