"""KV-block fusion: blocks of the KV cache that are alike are encoded once and shared (docs/fusion.md)."""
