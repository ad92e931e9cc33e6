"""Which parameters? The slow loop: a policy's declared parameters, searched over live or simulated feedback."""
