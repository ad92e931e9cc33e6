"""The OpenAI API: endpoints, request bodies and hints, prompt counts, usage and error responses."""
