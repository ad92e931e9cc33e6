"""What the gateway learns and keeps: policy state over restarts, and live tuning."""
