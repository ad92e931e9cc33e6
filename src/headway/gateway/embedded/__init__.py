"""The engine that stands in where there is none: the simulated one, in real time, behind the OpenAI wire."""
