"""Ray Serve with one queue: a request router for its proxies and handles, and the actor that holds the queue."""
