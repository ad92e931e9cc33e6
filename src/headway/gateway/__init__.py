"""Real time: one OpenAI endpoint with a real queue in front of any engines. Needs the extra `gateway`."""
