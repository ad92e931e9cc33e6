"""The OpenAI API: endpoints, request bodies and hints, prompt counts, requests to replicas, usage and errors."""
