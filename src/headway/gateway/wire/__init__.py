"""HTTP/1.1 on both sides: connections of clients, connections to replicas, and their limits."""
