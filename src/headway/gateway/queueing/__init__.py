"""Requests that wait: one queue for each model, its bounds, its order, and where its head is sent."""
