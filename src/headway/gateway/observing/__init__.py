"""What operators see: metrics, traces, recordings and the live page."""
