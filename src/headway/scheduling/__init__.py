"""The brain: facts in, answers out. Shared by the simulator, the gateway and the vLLM plug-in."""
