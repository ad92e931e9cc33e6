"""The engines behind the gateway: their health, their load, and what they have in flight."""
