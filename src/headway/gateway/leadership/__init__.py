"""Leadership: which of several gateways serves a pool, the holder of a lease, while the others stand by."""
